"""A recipe's sweep: what its space may hold, and a point's recipe."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from triptych.recipe import RecipeError, dump_recipe, load_recipe, load_recipe_text, overrides_of, with_values

LR, NAME, RANK, TOKENS = (
    "stages.sft.train.optimizer.lr",
    "stages.sft.method.name",
    "stages.sft.method.r",
    "stages.sft.method.num_virtual_tokens",
)


@pytest.fixture
def recipe(tmp_path: Path) -> dict[str, Any]:
    return {
        "name": "films",
        "model": {"base": "smollm2-135m-instruct"},
        "stages": {
            "sft": {
                "kind": "sft",
                "method": {"name": "lora", "alpha": 8},
                "data": {"train": {"path": "a.jsonl"}, "heldout": {"path": "b.jsonl"}},
                "train": {"epochs": 1, "evaluate_every": 5},
            }
        },
        "sweep": {
            "stage": "sft",
            "space": {
                LR: {"loguniform": [1e-5, 1e-3]},
                NAME: {"choice": ["lora", "p_tuning_v2"]},
                RANK: {"choice": [4, 8], "when": {NAME: "lora"}},
                TOKENS: {"int": [5, 50], "when": {NAME: ["p_tuning_v2"]}},
            },
            "objective": {"metric": "heldout_loss", "mode": "min"},
            "budget": {"trials": 4},
        },
    }


def load(recipe: dict[str, Any], tmp_path: Path) -> Any:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return load_recipe(path)


def test_a_point_is_a_recipe_of_its_own(recipe: dict[str, Any], tmp_path: Path) -> None:
    loaded = load(recipe, tmp_path)
    assert load_recipe_text(dump_recipe(loaded), "again") == loaded
    same = with_values(loaded, {LR: 1e-4, NAME: "lora", RANK: 8})
    stage: Any = same.stages["sft"]
    assert (same.sweep, stage.method.r, stage.method.alpha) == (None, 8, 8.0)
    # Another method than the recipe's knows nothing of its alpha, and comes before its own fields.
    point = {TOKENS: 7, LR: 1e-4, NAME: "p_tuning_v2"}
    other = with_values(loaded, point)
    stage = other.stages["sft"]
    assert (stage.method.name, stage.method.num_virtual_tokens) == ("p_tuning_v2", 7)
    assert stage.train.optimizer.lr == 1e-4
    assert overrides_of(loaded, point)[0] == 'stages.sft.method={"name": "p_tuning_v2"}'
    assert load_recipe(tmp_path / "recipe.yaml", overrides_of(loaded, point)).stages == other.stages


@pytest.mark.parametrize(
    ("key", "dimension", "message"),
    [
        ("stages.sft.train.optimizer.lrr", {"uniform": [0.1, 1]}, "unknown key; did you mean `lr`"),
        (RANK, {"choice": [4, 0], "when": {NAME: "lora"}}, "0: cannot be 0; allowed: a whole number >= 1"),
        (RANK, {"choice": [4], "when": {NAME: "p_tuning_v2"}}, "4: unknown key; did you mean `lr`"),
        (RANK, {"choice": [4], "when": {NAME: "ia3"}}, 'is never "ia3"; allowed: "lora", "p_tuning_v2"'),
        (RANK, {"choice": [4], "when": {"method.name": "lora"}}, "no such key; .*allowed: a key of the space above"),
        (LR, {"loguniform": [0, 1]}, "allowed: .low, high. with 0 < low < high"),
        (LR, {"uniform": [1e-3, 1e-4]}, "allowed: .low, high. with low < high"),
        (LR, {"uniform": [1e-4, 1e-3], "choice": [1e-3]}, "give exactly one of choice"),
        (LR, {"choice": []}, "an empty list"),
        ("storage.runs", {"choice": ["a"]}, "cannot differ between trials; allowed: keys below model, seed, stages"),
        ("stages.reward.method.r", {"choice": [4]}, "is none of the stage's"),
        ("model.dtype", {"choice": ["int4"]}, '"int4": cannot be "int4"; allowed: float32'),
    ],
)
def test_spaces_that_contradict_the_recipe(
    recipe: dict[str, Any], tmp_path: Path, key: str, dimension: dict[str, Any], message: str
) -> None:
    recipe["sweep"]["space"].pop(key, None)
    recipe["sweep"]["space"][key] = dimension
    with pytest.raises(RecipeError, match=message) as error:
        load(recipe, tmp_path)
    assert error.value.file == str(tmp_path / "recipe.yaml")
    assert isinstance(error.value.line, int)
    assert error.value.field.startswith(f"sweep.space.{key}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": {"trials": 0}}, "sweep.budget.trials: cannot be 0"),
        ({"budget": {"device_seconds": 0}}, "sweep.budget.device_seconds: cannot be 0"),
        ({"budget": {}}, "at least one of trials, device_seconds, tokens"),
        ({"space": {}}, "sweep.space: .*at least one entry"),
        ({"stage": "stf"}, "no such stage; did you mean `sft`"),
        ({"objective": {"metric": "heldout_loss"}}, "sweep.objective.mode: missing; allowed: min, max"),
        ({"objective": []}, "an empty list"),
        ({"search": "grid"}, "search grid needs a choice for every key, and stages.sft.train.optimizer.lr is a range"),
        ({"search": "bayes"}, "allowed: random, grid, tpe, nsga2"),
        ({"scheduler": "pbt", "budget": {"tokens": 5}}, "scheduler pbt needs budget.trials"),
        (
            {"scheduler": "asha", "objective": [{"metric": "a", "mode": "min"}, {"metric": "b", "mode": "max"}]},
            "scheduler asha judges by one objective",
        ),
    ],
)
def test_sweeps_that_cannot_be(recipe: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str) -> None:
    recipe["sweep"] |= change
    with pytest.raises(RecipeError, match=message):
        load(recipe, tmp_path)
