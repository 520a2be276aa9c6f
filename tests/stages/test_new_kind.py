"""A kind of four files that the package does not know is planned, traced, trained, resumed and swept."""

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from triptych.errors import RunError
from triptych.measure import traced
from triptych.models.sizes import model_sizes
from triptych.observe.log import read_metrics
from triptych.observe.progress import Progress
from triptych.plan import estimate, local
from triptych.recipe import KINDS, Recipe, RecipeError, load_recipe
from triptych.stages.run import run_folder, run_recipe
from triptych.tune.sweep import run_sweep

WORDS = ("warm", "dull", "slow", "kind", "loud", "thin", "bright", "odd")
Make = Callable[..., Recipe]


@pytest.fixture
def toy_kind() -> Iterator[None]:
    kind = importlib.import_module("tests.support.toy_kind.recipe")
    kind.add()
    yield
    kind.remove()


@pytest.fixture
def make_recipe(toy_kind: None, tiny_model_dir: Path, tmp_path: Path) -> Make:
    """Four steps on the tiny model in float32, a checkpoint after each; fields of the stage are given."""
    rows = [{"text": f"Film {i} is {WORDS[i % 8]}."} for i in range(16)]
    for split, some in (("train", rows), ("heldout", rows[:4])):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))

    def make(name: str, sweep: dict[str, Any] | None = None, **fields: Any) -> Recipe:
        train = {
            "steps": 4,
            "optimizer": {"lr": 0.01},
            "batch": {"rows": 4, "micro_tokens": 256, "max_length": 64},
            "workers": {"max_restarts": 0},
            "checkpoint_every": 1,
            "evaluate_every": 2,
        }
        stage = {
            "kind": "pretraining",
            "method": {"name": "lora", "r": 4},
            "data": {split: {"path": str(tmp_path / f"{split}.jsonl")} for split in ("train", "heldout")},
            "train": train,
        }
        recipe = {
            "name": name,
            "model": {"base": str(tiny_model_dir), "dtype": "float32"},
            "storage": {"runs": str(tmp_path / "runs")},
            "stages": {"texts": stage | fields},
            "sweep": sweep,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return load_recipe(path)

    return make


def test_a_kind_is_refused_before_it_is_in_the_table_and_after(make_recipe: Make, tmp_path: Path) -> None:
    make_recipe("known")
    with pytest.raises(RecipeError, match="unknown key; did you mean `fails_once`"):
        make_recipe("odd", fails_twice=True)
    del KINDS["pretraining"]
    Recipe.model_rebuild(force=True)
    with pytest.raises(RecipeError, match=r'stages.texts.kind: cannot be "pretraining"; allowed: classification, '):
        load_recipe(tmp_path / "known.yaml")
    importlib.import_module("tests.support.toy_kind.recipe").add()


@pytest.mark.slow
def test_a_new_kind_is_planned_and_traced(make_recipe: Make) -> None:
    recipe = make_recipe("planned")
    closed = estimate(recipe, machine=local()).stages["texts"]
    exact = estimate(recipe, machine=local(), exact=True, trace=traced).stages["texts"]
    assert list(closed.roles) == ["policy"]
    assert "logits" in closed.roles["policy"].parts
    assert model_sizes(recipe.model).layers == 2
    assert exact.roles["policy"].parts["activations"].expected > 0
    assert exact.roles["policy"].parts["activations"] != closed.roles["policy"].parts["activations"]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.exhaustive
@pytest.mark.usefixtures("ray_cluster")
def test_a_new_kind_resumes_where_it_failed(make_recipe: Make) -> None:
    undisturbed = run_recipe(make_recipe("undisturbed"), Progress.start())["texts"]
    failing = make_recipe("failing", fails_once=True)
    with pytest.raises(RunError, match="the third micro-batch fails"):
        run_recipe(failing, Progress.start())
    summary = run_recipe(failing, Progress.start())["texts"]
    assert summary["registered"] == "failing-texts@1"
    assert summary["metrics"]["heldout_loss"] == pytest.approx(undisturbed["metrics"]["heldout_loss"], abs=1e-6)
    rows = read_metrics(f"{run_folder(failing)}/stages/texts")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.exhaustive
@pytest.mark.usefixtures("ray_cluster")
def test_a_new_kind_is_swept(make_recipe: Make) -> None:
    space = {"stages.texts.train.optimizer.lr": {"choice": [0.01, 1e-9]}}
    objective = {"metric": "heldout_loss", "mode": "min"}
    sweep = {"stage": "texts", "space": space, "objective": objective, "budget": {"trials": 2}, "search": "grid"}
    found = run_sweep(make_recipe("swept", sweep), Progress.start())
    assert [trial.status for trial in found.trials] == ["done", "done"]
    assert found.best is not None
    assert found.best.values == {"stages.texts.train.optimizer.lr": 0.01}
