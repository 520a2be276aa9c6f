"""The reward stage for real, small: an ensemble with margins and centring, its report, and its gate."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from triptych.data.table import read_table
from triptych.errors import RunError
from triptych.forward.roles import RoleModel
from triptych.models.adapter import load_adapter
from triptych.models.base import load_causal_lm
from triptych.observe.progress import Progress
from triptych.observe.report import write_report
from triptych.recipe import REWARD, RecipeError, load_recipe, member_roles
from triptych.recipe.kinds import Reward
from triptych.registry import Registry
from triptych.stages.artifact import check_gate
from triptych.stages.run import run_recipe
from triptych.stages.supervised.reward import batch_of_pairs
from triptych.train.tasks.forward import mean_scores

GATE = "stages.reward.min_accuracy="


def test_a_batch_of_pairs_has_the_margins_that_there_are() -> None:
    rows: list[dict[str, Any]] = [
        {"chosen": [8], "rejected": [9], "start": 0},
        {"chosen": [5, 6], "rejected": [5], "start": 0},
    ]
    batch = batch_of_pairs(rows, pad=0)
    assert batch["ids"].tolist() == [[8, 0], [5, 6], [9, 0], [5, 0]]
    assert "margin" not in batch
    batch = batch_of_pairs([row | {"margin": margin} for row, margin in zip(rows, (2.0, 0.5), strict=True)], pad=0)
    assert batch["margin"].tolist() == [2.0, 0.5]


def test_a_model_below_its_gate_is_refused(recipe_file: Path) -> None:
    stage = load_recipe(recipe_file, [f"{GATE}0.8"]).stages["reward"]
    assert isinstance(stage, Reward)
    check_gate("reward", stage, {"heldout_accuracy": 0.8})
    for metrics in ({"heldout_accuracy": 0.799}, {}):
        with pytest.raises(RunError, match=r"stage reward: accuracy 0.* is below min_accuracy 0.8"):
            check_gate("reward", stage, metrics)


def test_a_gate_needs_held_out_pairs(recipe_file: Path) -> None:
    with pytest.raises(RecipeError, match=r"min_accuracy is measured on `data\.heldout`"):
        load_recipe(recipe_file, [f"{GATE}0.8", "stages.reward.data.heldout=null"])


@pytest.fixture
def ensemble_recipe(recipe_file: Path, tmp_path: Path) -> Path:
    """Two members, 8 steps; a quarter of the held-out pairs contradict the training pairs."""
    recipe = yaml.safe_load(recipe_file.read_text())
    stage = recipe["stages"]["reward"]
    stage |= {"members": 2, "margin": True, "centering": 0.01}
    stage["train"] |= {"steps": 8, "evaluate_every": 4}
    for split in ("train", "heldout"):
        path = Path(stage["data"][split]["path"])
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        if split == "heldout":
            rows = [r | {"chosen": r["rejected"], "rejected": r["chosen"]} if i < 2 else r for i, r in enumerate(rows)]
        path.write_text("".join(json.dumps(row | {"margin": 0.5}) + "\n" for row in rows))
    recipe_file.write_text(yaml.safe_dump(recipe))
    return recipe_file


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("ray_cluster")
def test_an_ensemble_is_trained_measured_and_held_to_its_gate(
    ensemble_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress.start()
    folder = tmp_path / "runs/tiny/stages/reward"
    registry = Registry(f"sqlite:///{tmp_path}/runs/registry.db", str(tmp_path / "artifacts"))
    strict, lenient = (load_recipe(ensemble_recipe, [f"{GATE}{least}"]) for least in (0.9, 0.5))
    with caplog.at_level(logging.WARNING), pytest.raises(RunError, match=r"accuracy .* is below min_accuracy 0.9"):
        run_recipe(strict, progress, only="reward")
    assert "8 of 8 held-out prompts are training prompts too" in caplog.text
    assert not (folder / "summary.json").exists()
    assert registry.adapters() == []

    trained = (folder / "artifact/adapter_model.safetensors").stat().st_mtime
    summary = run_recipe(lenient, progress, only="reward")["reward"]  # another gate asks for no other training
    assert (folder / "artifact/adapter_model.safetensors").stat().st_mtime == trained
    report = json.loads((folder / "evaluations/reward.json").read_text())
    metrics = summary["metrics"]
    assert metrics["heldout_accuracy"] == report["accuracy"]
    assert metrics["heldout_disagreement"] == pytest.approx(report["members"]["disagreement"], rel=1e-4)
    assert report["pairs"] == sum(report["gaps"]["counts"]) == sum(b["pairs"] for b in report["calibration"]["bins"])
    assert report["prompts"] == {"asked": 8, "trained_on": 8}
    assert 0.5 <= report["accuracy"] <= 0.75
    page = Path(write_report(str(tmp_path / "runs/tiny"))).read_text()
    assert "Expected calibration error" in page

    # The registered folder gives the scores that were measured, and its constants make them 0 +- 1 on training answers.
    version = registry.get(summary["registered"])
    adapter = load_adapter(Path(version.url), "reward_model")
    assert len(adapter.others) == 1
    model = RoleModel(load_causal_lm(Path(lenient.model.base), torch.float32))
    roles = member_roles(REWARD, 2)
    for role, member in zip(roles, (adapter, *adapter.others), strict=True):
        model.add(role, member.method, trainable=False, weights=member.weights, head=member.scalar_head())
    model.eval()

    def scores(split: str) -> torch.Tensor:
        table = read_table(str(folder / "data" / split))
        rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
        batch = batch_of_pairs(rows, pad=0)
        with torch.no_grad(), model.use(REWARD):
            return mean_scores(model, batch, roles)

    chosen, rejected = scores("heldout").chunk(2)
    assert (chosen > rejected).double().mean().item() == report["accuracy"]
    train = scores("train")
    assert adapter.normalization is not None
    assert adapter.normalization.mean == pytest.approx(train.mean().item(), abs=1e-4)
    assert adapter.normalization.std == pytest.approx(train.std(correction=0).item(), rel=1e-3)

    # A gate that is raised later shuts PPO out as well.
    raised = load_recipe(ensemble_recipe, [f"{GATE}0.9", f"stages.ppo.policy={summary['registered']}"])
    with pytest.raises(RunError, match=r"below min_accuracy 0.9: .* PPO may not learn from it"):
        run_recipe(raised, progress, only="ppo")
