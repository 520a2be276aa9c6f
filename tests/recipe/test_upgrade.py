"""Recipes of the form before `kind: rl` say the same as their form of today."""

import re
from pathlib import Path
from typing import Any

import pytest

from triptych.recipe import Recipe, RecipeError, Rl, dump_recipe, load_recipe
from triptych.recipe.document import write
from triptych.recipe.spec import dotted
from triptych.recipe.upgrade import MOVED, moved_path, old_path, upgraded

ROOT = Path(__file__).parents[2]
DATA = {"train": {"path": "prompts.jsonl"}}
OLD: dict[str, Any] = {
    "kind": "ppo",
    "policy": "a@1",
    "reward": "b@2",
    "data": DATA,
    "register_as": "polite",
    "steps": 7,
    "prompts_per_step": 3,
    "samples_per_prompt": 5,
    "micro_tokens": 99,
    "max_prompt_tokens": 11,
    "memory": {"checkpointing": "full"},
    "workers": {"count": 2, "strategy": "ddp"},
    "checkpoint_every": 2,
    "evaluate_every": 3,
    "auto": ["loss_chunk"],
    "policy_optimizer": {"lr": 0.5},
    "value_optimizer": {"lr": 0.25, "name": "lion"},
    "ppo": {
        "clip": 0.3,
        "value_clip": None,
        "gamma": 0.9,
        "lam": 0.8,
        "whiten": False,
        "epochs": 4,
        "minibatches": 3,
        "reward_clip": 6.0,
        "missing_eos_penalty": 0.5,
        "kl": {"coef": 0.1, "kind": "k3", "target": 2.0, "horizon": 50.0},
        "importance": {"level": "sequence", "cap": 3.0},
    },
    "rollout": {"engines": 1, "sampling": {"max_new_tokens": 9}},
    "evaluation": {"max_new_tokens": 8},
    "judge": "vader",
}
NEW: dict[str, Any] = {
    "kind": "rl",
    "policy": "a@1",
    "algorithm": {
        "name": "ppo",
        "clip": 0.3,
        "value_clip": None,
        "gamma": 0.9,
        "lam": 0.8,
        "whiten": False,
        "critic": {"optimizer": {"lr": 0.25, "name": "lion"}},
    },
    "rewards": [{"name": "model", "stage": "b@2"}],
    "schedule": {"name": "sync"},
    "data": DATA,
    "register_as": "polite",
    "train": {
        "steps": 7,
        "optimizer": {"lr": 0.5},
        "batch": {"epochs": 4, "minibatches": 3, "micro_tokens": 99},
        "memory": {"checkpointing": "full"},
        "workers": {"count": 2, "strategy": "ddp"},
        "checkpoint_every": 2,
        "evaluate_every": 3,
        "auto": ["loss_chunk"],
    },
    "rollout": {
        "prompts_per_step": 3,
        "samples_per_prompt": 5,
        "max_prompt_tokens": 11,
        "engines": 1,
        "sampling": {"max_new_tokens": 9},
    },
    "kl": {"coef": 0.1, "kind": "k3", "target": 2.0, "horizon": 50.0},
    "importance": {"level": "sequence", "cap": 3.0},
    "reward_clip": 6.0,
    "missing_eos_penalty": 0.5,
    "evaluation": {"max_new_tokens": 8},
    "judge": "vader",
}


def load(folder: Path, stage: dict[str, Any], *overrides: str) -> Recipe:
    path = folder / "recipe.yaml"
    path.write_text(write({"name": "r", "model": {"base": "b"}, "stages": {"ppo": stage}}))
    return load_recipe(path, overrides)


def test_both_forms_resolve_to_the_same_recipe(tmp_path: Path) -> None:
    assert load(tmp_path, OLD) == load(tmp_path, NEW)
    assert "kind: rl" in dump_recipe(load(tmp_path, OLD))


def test_every_old_field_reaches_its_new_place(tmp_path: Path) -> None:
    plain = upgraded({"stages": {"ppo": OLD}})["stages"]["ppo"]
    written = [("ppo", key) for key in OLD["ppo"]] + [(key,) for key in OLD if key not in ("kind", "ppo", "reward")]
    for path in written:
        value: Any = OLD
        for step in path:
            value = value[step]
        found: Any = plain
        for step in moved_path(path):
            found = found[step]
        assert found == value if not isinstance(value, dict) else value.items() <= found.items()
        assert old_path(moved_path(path)) == path


def test_the_old_form_samples_held_out_answers_as_it_did(tmp_path: Path) -> None:
    old = {key: value for key, value in OLD.items() if key != "evaluation"}
    for changed, tokens in ((old, 48), (old | {"evaluation": {"max_new_tokens": 9}}, 9)):
        sampling = {"max_new_tokens": 12, "temperature": 0.5}
        stage = load(tmp_path, changed | {"rollout": {"sampling": sampling}}).stages["ppo"]
        assert isinstance(stage, Rl)
        assert (stage.evaluation.max_new_tokens, stage.evaluation.temperature) == (tokens, 1.0)


def test_defaults_of_both_forms_are_the_same(tmp_path: Path) -> None:
    old = {key: OLD[key] for key in ("kind", "policy", "reward", "data", "steps")}
    new = {key: NEW[key] for key in ("kind", "policy", "rewards", "data")} | {"train": {"steps": 7}}
    assert load(tmp_path, old) == load(tmp_path, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps=3", "train.steps=3"),
        ("ppo.kl.coef=0.4", "kl.coef=0.4"),
        ("ppo.clip=0.1", "algorithm.clip=0.1"),
        ("value_optimizer.lr=0.125", "algorithm.critic.optimizer.lr=0.125"),
        ("reward=c@1", "rewards.0.stage=c@1"),
        ("micro_tokens=auto", "train.batch.micro_tokens=auto"),
    ],
)
def test_overrides_of_both_forms_are_the_same(tmp_path: Path, old: str, new: str) -> None:
    assert load(tmp_path, OLD, f"stages.ppo.{old}") == load(tmp_path, NEW, f"stages.ppo.{new}")


def test_a_mistake_in_an_old_field_is_told_under_its_old_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, OLD | {"steps": 0})
    assert caught.value.field == "stages.ppo.steps"
    assert isinstance(caught.value.line, int)
    lines = (tmp_path / "recipe.yaml").read_text().splitlines()
    assert lines[caught.value.line - 1].strip() == "steps: 0"


def test_a_value_at_both_places_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.ppo\.train\.steps: is given at its place of before and at"):
        load(tmp_path, OLD | {"train": {"steps": 3}})


def test_an_old_field_of_the_new_kind_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.ppo\.micro_tokens: unknown key; it stands in `train.batch.micro_"):
        load(tmp_path, NEW | {"micro_tokens": 3})


def test_the_documentation_has_the_whole_table() -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", page, re.MULTILINE))
    assert told == {dotted(old): dotted(new) for old, new in MOVED.items() if old != ("ppo",)}
