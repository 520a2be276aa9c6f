"""Stop rules in a recipe: what they need, and that recipes without them mean what they meant."""

from typing import Any

import pytest

from triptych.recipe import Recipe, RecipeError, Rl, with_effect
from triptych.recipe.changes import differences
from triptych.recipe.load import recipe_with

WATCH = {"hacking": {"margin": 0.1}}
HELDOUT = {"heldout": {"patience": 2}}


def recipe(**changes: Any) -> Recipe:
    stage = {
        "kind": "rl",
        "policy": "a@1",
        "rewards": [{"stage": "b@1"}],
        "judge": "vader",
        "data": {"train": {"path": "prompts.jsonl"}, "heldout": {"path": "more.jsonl"}},
        "train": {"steps": 8, "evaluate_every": 2},
    }
    stage |= {key: value for key, value in changes.items() if key != "train"}
    stage["train"] |= changes.get("train", {})
    return Recipe.model_validate({"name": "r", "model": {"base": "b"}, "stages": {"rl": stage}})


def problems(changed: Recipe) -> list[str]:
    with pytest.raises(RecipeError) as error:
        recipe_with(changed, [])
    return [f"{problem.field}: {problem.message}" for problem in error.value.problems]


@pytest.mark.parametrize("rules", [WATCH, HELDOUT])
def test_rules_of_evaluations_need_evaluations(rules: dict[str, Any]) -> None:
    name = next(iter(rules))
    train = {"stopping": rules}
    recipe_with(recipe(train=train), [])
    field = f"stages.rl.train.stopping.{name}"
    no_prompts = recipe(train=train, data={"train": {"path": "prompts.jsonl"}})
    assert problems(no_prompts) == [
        f"{field}: no held-out prompts to measure; allowed: with `data.heldout`, or no stopping.{name}"
    ]
    assert problems(recipe(train=train | {"evaluate_every": None})) == [
        f"{field}: needs evaluations during training; allowed: with `train.evaluate_every`, or no {name}"
    ]


def test_the_watch_for_reward_hacking_needs_a_judge() -> None:
    assert problems(recipe(train={"stopping": WATCH}, judge=None)) == [
        "stages.rl.train.stopping.hacking: needs a score that training never sees; allowed: with `watch` or `judge`"
    ]
    recipe_with(recipe(train={"stopping": HELDOUT}, judge=None), [])


def test_a_limit_of_a_kl_that_is_not_measured_is_refused() -> None:
    assert problems(recipe(train={"stopping": {"kl": {"limit": 5.0}}}, kl={"coef": 0})) == [
        "stages.rl.train.stopping.kl: no KL is measured where `kl.coef` is 0; allowed: more, or no kl here"
    ]


def test_every_rule_is_off_by_default() -> None:
    stage = recipe().stages["rl"]
    assert isinstance(stage, Rl)
    assert stage.train.stopping is None
    before = with_effect(stage)
    del before["train"]["stopping"]  # what a run of an earlier version wrote down
    assert differences(before, with_effect(stage)) == ""
    ruled = recipe(train={"stopping": {"kl": {"limit": 5.0}}}).stages["rl"]
    assert differences(before, with_effect(ruled)) != ""


SETS = {"sums": {"data": {"path": "sums.jsonl"}, "rewards": [{"name": "gsm8k"}], "pass_at": [1, 2]}}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"heldout": {"metric": "heldout_sums_pass_at_2"}}, None),
        ({"heldout": {"metric": "heldout_sums_reward"}}, None),
        ({"hacking": {"margin": 0.1, "set": "sums"}}, None),
        (
            {"heldout": {"metric": "heldout_sums_kl"}},
            "heldout.metric: `heldout_sums_kl`; allowed: heldout_reward, heldout_sums_reward, heldout_sums_pass_at_1, "
            "heldout_sums_pass_at_2",
        ),
        ({"hacking": {"margin": 0.1, "set": "tales"}}, "hacking.set: `tales` is no such set; allowed: none, sums"),
    ],
)
def test_rules_may_aim_at_any_set_that_is_measured(rules: dict[str, Any], message: str | None) -> None:
    changed = recipe(train={"stopping": rules}, evaluations=SETS)
    if message is None:
        recipe_with(changed, [])
    else:
        assert problems(changed) == [f"stages.rl.train.stopping.{message}"]


def test_a_set_with_a_name_suffices_for_rules() -> None:
    data = {"train": {"path": "prompts.jsonl"}}
    rules = {"heldout": {"metric": "heldout_sums_reward"}, "hacking": {"margin": 0.1, "set": "sums"}}
    recipe_with(recipe(train={"stopping": rules}, data=data, evaluations=SETS), [])
    assert problems(recipe(train={"stopping": HELDOUT}, data=data, evaluations=SETS)) == [
        "stages.rl.train.stopping.heldout.metric: `heldout_reward`; allowed: heldout_sums_reward, "
        "heldout_sums_pass_at_1, heldout_sums_pass_at_2"
    ]


def test_the_rules_of_before_mean_what_they_meant() -> None:
    stage = recipe(train={"stopping": WATCH | HELDOUT}).stages["rl"]
    assert isinstance(stage, Rl)
    rules = stage.train.stopping
    assert rules is not None
    assert (rules.best_by, rules.hacking and rules.hacking.split) == ("heldout_reward", "heldout")
