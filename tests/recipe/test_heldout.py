"""Sets of held-out prompts and a watch in a recipe: what they mean, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from triptych.recipe import Recipe, RecipeError, Rl, dump_recipe, load_recipe_text, with_effect
from triptych.recipe.changes import differences
from triptych.recipe.load import recipe_with
from triptych.tune.trial import trial_recipe

SUMS: dict[str, Any] = {"data": {"path": "sums.jsonl"}, "rewards": [{"name": "gsm8k"}]}
TASTE: dict[str, Any] = {"name": "judge", "url": "https://judge", "model": "m", "mode": "pairs"}


def recipe(**changes: Any) -> Recipe:
    stage = {
        "kind": "rl",
        "policy": "a@1",
        "rewards": [{"stage": "b@1"}],
        "data": {"train": {"path": "prompts.jsonl"}, "heldout": {"path": "more.jsonl"}},
        "train": {"steps": 8},
        "rollout": {"samples_per_prompt": 4, "sampling": {"max_new_tokens": 100}},
    }
    return Recipe.model_validate({"name": "r", "model": {"base": "b"}, "stages": {"rl": stage | changes}})


def rl(**changes: Any) -> Rl:
    stage = recipe_with(recipe(**changes), []).stages["rl"]
    assert isinstance(stage, Rl)
    return stage


def test_a_recipe_without_sets_is_measured_as_before() -> None:
    stage = rl()
    assert list(stage.splits()) == ["train", "heldout"]
    assert stage.reports() == ("reward", "length", "truncated", "distinct2", "kl")
    assert [role.name for role in stage.roles({})] == ["policy", "reference", "critic", "reward"]
    before = with_effect(stage)
    for field in ("evaluations", "watch"):
        del before[field]
    now = with_effect(Rl.model_validate(before | {"kind": "rl"}))
    assert differences(with_effect(stage), now) == ""


def test_the_context_holds_the_longest_answer_of_any_set() -> None:
    longer = SUMS | {"sampling": {"max_new_tokens": 700}}
    shape = rl(evaluations={"sums": longer, "tales": SUMS}).shape()
    assert (shape.longest, shape.context) == (356, 956)
    assert shape.context_field == "rollout.max_prompt_tokens + evaluations.sums.sampling.max_new_tokens"
    alike = rl(evaluations={"tales": SUMS}).shape()
    assert (alike.context, alike.context_field) == (356, "rollout.max_prompt_tokens + rollout.sampling.max_new_tokens")


def test_a_written_recipe_keeps_what_sets_take_from_rollouts() -> None:
    first = recipe_with(recipe(evaluations={"sums": SUMS | {"sampling": {"temperature": 0.5}}}), [])
    again = load_recipe_text(dump_recipe(first), "again.yaml")
    assert again == first
    stage = again.stages["rl"]
    assert isinstance(stage, Rl)
    sampling = stage.evaluations["sums"].sampling
    assert (sampling.temperature, sampling.max_new_tokens, stage.evaluations["sums"].samples_per_prompt) == (
        0.5,
        100,
        4,
    )


def test_each_set_is_a_split_with_a_field() -> None:
    stage = rl(evaluations={"sums": SUMS})
    assert list(stage.splits()) == ["train", "heldout", "heldout_sums"]
    assert stage.split_field("heldout_sums") == ("evaluations", "sums", "data")
    assert stage.split_field("heldout") == ("data", "heldout")


def test_reward_models_that_measure_alone_have_a_role_each_once() -> None:
    own = SUMS | {"rewards": [{"stage": "c@1"}, {"stage": "b@1", "label": "seen"}, {"stage": "d@2", "label": "other"}]}
    stage = rl(watch={"stage": "c@1"}, evaluations={"sums": own})
    assert stage.measuring_models == ("c@1", "d@2")
    assert [role.name for role in stage.roles({})][3:] == ["reward", "measuring", "measuring_2"]
    named = {one.field: one.ref for one in stage.references()}
    assert named["watch", "stage"] == "c@1"
    assert named["evaluations", "sums", "rewards", 2, "stage"] == "d@2"


def test_a_trial_reads_every_set_wherever_it_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    space = {"stages.rl.train.optimizer.lr": {"loguniform": [1e-5, 1e-4]}}
    sweep = {"stage": "rl", "space": space, "budget": {"trials": 1}}
    swept = recipe(evaluations={"sums": SUMS}).model_dump(mode="json")
    found = trial_recipe(Recipe.model_validate(swept | {"sweep": sweep | OBJECTIVE}), {}, "trial", str(tmp_path))
    stage = found.stages["rl"]
    assert {source.path for source in stage.splits().values()} == {
        str(tmp_path / name) for name in ("prompts.jsonl", "more.jsonl", "sums.jsonl")
    }


OBJECTIVE: dict[str, Any] = {"objective": {"metric": "heldout_sums_reward", "mode": "max"}}
DATA: dict[str, Any] = {"train": {"path": "prompts.jsonl"}}
LONG: dict[str, Any] = {"name": "length", "limit": 50, "cache": 20}
"""A penalty that begins above 30 tokens."""
TURNS: dict[str, Any] = {"name": "calculator", "max_turns": 3, "max_reply_tokens": 40}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"evaluations": {"sums": SUMS | {"pass_at": [1, 5]}}}, "evaluations.sums.pass_at.1: 5, and a prompt has"),
        (
            {"evaluations": {"sums": {"data": {"path": "x"}, "pass_at": [1]}}},
            "evaluations.sums.pass_from: nothing says which answers are right",
        ),
        (
            {"evaluations": {"sums": SUMS | {"pass_from": 0.5}}},
            "evaluations.sums.pass_from: is read for `pass_at` alone",
        ),
        (
            {"evaluations": {"sums": SUMS | {"rewards": [{"name": "gsm8k", "weight": 0}]}}},
            "evaluations.sums.rewards.0.weight: 0, and so is every other",
        ),
        (
            {"evaluations": {"sums": SUMS | {"rewards": [TASTE], "samples_per_prompt": 1}}},
            "evaluations.sums.rewards.0.mode: pairs compares the answers to a prompt, and it has one",
        ),
        ({"watch": {"name": "gsm8k"}, "judge": "vader"}, "judge: a second score that training never sees"),
        ({"watch": {"name": "gsm8k"}, "data": DATA}, "watch: no held-out answers to measure"),
        ({"watch": {"name": "gsm8k", "weight": 2}}, "watch.weight: is for rewards that are summed"),
        ({"watch": {"name": "gsm8k", "label": "sums"}}, "watch.label: is for rewards that are summed"),
        ({"watch": {"stage": "b@1"}}, "watch: training learns from the same reward"),
        ({"watch": {"stage": "b@1", "normalized_by": "policy"}}, "watch: training learns from the same reward"),
        (
            {"evaluations": {"sums": SUMS | {"rewards": [LONG], "sampling": {"max_new_tokens": 20}, "pass_at": []}}},
            "evaluations.sums.rewards.0.limit: the penalty begins above 30 tokens, and no answer has more than "
            "evaluations.sums.sampling.max_new_tokens = 20; allowed: limit - cache below 20",
        ),
        (
            {"rewards": [LONG], "rollout": {"sampling": {"max_new_tokens": 10}}, "environment": TURNS},
            "rewards.0.limit: the penalty begins above 30 tokens, and no answer has more than "
            "3 x rollout.sampling.max_new_tokens = 30; allowed: limit - cache below 30",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        recipe_with(recipe(**changes), [])
    assert any(f"{one.field}: {one.message}".startswith(f"stages.rl.{message}") for one in refused.value.problems)


@pytest.mark.parametrize("name", ["teacher", "reward", "heldout", "Sums", "two_words"])
def test_names_that_other_metrics_begin_with_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="evaluations"):
        recipe(evaluations={name: SUMS})


def test_a_reward_that_is_only_recorded_may_be_the_watch_too() -> None:
    seen = {"stage": "b@1", "weight": 0}
    assert rl(rewards=[{"name": "gsm8k"}, seen], watch={"stage": "b@1"}).watched == "watch"
