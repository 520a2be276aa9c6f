"""Rows of the metrics log: which steps they stand for, what they add up to, and that a killed stage repeats none."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from tests.support.loop import SEQUENCES, Killed, Mortal, Silent, rows
from triptych.forward.roles import RoleModel
from triptych.methods.flops import TokenCounts, train_flops
from triptych.models.base import load_causal_lm
from triptych.models.sizes import model_sizes
from triptych.observe.log import read_metrics
from triptych.recipe import Lora
from triptych.recipe.matrix import AdaLora
from triptych.stages.artifact import commit_role
from triptych.stages.context import StageContext
from triptych.stages.supervised.loop import fit
from triptych.stages.supervised.training import learner_for
from triptych.train.learner import Learner

Make = Callable[[dict[str, Any]], StageContext[Any]]
PARTS = ("data", "forward", "backward", "communication", "optimizer", "other")


def learner(ctx: StageContext[Any]) -> Learner:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(ctx.base_dir, torch.float32))
    model.add("policy", Lora(r=4), trainable=True)
    return Learner(model, {"policy": ctx.stage.train.optimizer}, {"policy": 7})


@pytest.fixture
def context(make_context: Make, tmp_path: Path) -> Callable[[str], StageContext[Any]]:
    """Seven steps on the tiny model: a row every 2, a checkpoint every 3, a measurement every 4."""

    def make(run: str) -> StageContext[Any]:
        train = {"steps": 7, "log_every": 2, "checkpoint_every": 3, "evaluate_every": 4, "batch": {"rows": 4}}
        stage = {"kind": "sft", "method": {"name": "lora", "r": 4}, "data": {"train": {"path": "x"}}, "train": train}
        ctx = make_context(stage)
        recipe = ctx.recipe.model_copy(update={"trackers": ("tensorboard",)})
        return replace(ctx, recipe=recipe, run=str(tmp_path / run), progress=Silent(None))

    return make


def trained(ctx: StageContext[Any], dies_at: int | None = None) -> None:
    deaths = (step == dies_at for step in range(1, 8))
    fit(ctx, learner(ctx), Mortal("policy", deaths), rows(), rows())


def test_rows_add_up(context: Callable[[str], StageContext[Any]]) -> None:
    ctx = context("whole")
    trained(ctx)
    found = read_metrics(ctx.folder)
    assert [row["step"] for row in found] == [2, 3, 4, 6, 7]
    assert [row["step"] for row in found if "heldout_loss" in row] == [4]
    assert [row["step"] for row in found if "seconds_evaluate" in row] == [4]
    assert [row["step"] for row in found if "seconds_checkpoint" in row] == [4, 7]  # of steps 3 and 6
    everything = sum(map(len, SEQUENCES))
    assert sum(row["tokens"] for row in found[:2]) == everything  # three steps are an epoch
    for row, steps in zip(found, (2, 1, 1, 2, 1), strict=True):
        whole = row["step_seconds"] * steps
        assert sum(row[f"seconds_{part}"] for part in PARTS) == pytest.approx(whole, rel=1e-6)
        assert row["tokens_per_second"] == pytest.approx(row["tokens"] / whole)
        busy = whole - row["seconds_communication"]
        assert row["worker_tokens_per_second"] == [pytest.approx(row["tokens"] / busy)]
        assert "mfu" not in row  # no CPU's peak is known
    work = [TokenCounts(len(s), len(s) - 1, len(s) * (len(s) + 1) / 2) for s in SEQUENCES]
    most = train_flops(model_sizes(ctx.recipe.model), Lora(r=4), sum(work, TokenCounts()))
    spent = sum(
        row["model_flops_per_second"] * row["step_seconds"] * n for row, n in zip(found[:2], (2, 1), strict=True)
    )
    assert 0.8 * most < spent <= most  # rows that begin alike share their beginning


@pytest.mark.slow
def test_a_start_from_the_first_batches(context: Callable[[str], StageContext[Any]]) -> None:
    """EVA sees the first epoch's rows, gives the same at every call, and is not asked where a checkpoint is."""
    plain = context("eva")
    method = Lora(r=4, init="eva")
    ctx = replace(plain, stage=plain.stage.model_copy(update={"method": method}))

    def start() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """A before and after."""
        torch.manual_seed(0)
        model = RoleModel(load_causal_lm(ctx.base_dir, torch.float32))
        model.add("policy", method, trainable=True)
        before = {name: a.clone() for name, a in model.adapter("policy").items() if "lora_A" in name}
        after = learner_for(ctx, model, {"policy": "policy"}, {"train": rows()}).weights("policy")
        return before, {name: after[name] for name in before}

    (random, first), (_, second) = start(), start()
    assert all(torch.equal(first[name], second[name]) and not torch.equal(first[name], a) for name, a in random.items())
    trained(ctx)
    assert all(torch.equal(*pair) for pair in zip(*(found.values() for found in start()), strict=True))


def test_ranks_of_adalora_are_written_for_the_report(context: Callable[[str], StageContext[Any]]) -> None:
    ctx = context("adalora")
    method = AdaLora(init_r=3, target_r=2, targets=("q_proj",))
    ctx = replace(ctx, stage=ctx.stage.model_copy(update={"method": method}))
    model = RoleModel(load_causal_lm(ctx.base_dir, torch.float32))
    model.add("policy", method, trainable=True)
    learner = learner_for(ctx, model, {"policy": "policy"}, {"train": rows()})
    commit_role(ctx, learner, "policy", {})
    written = json.loads((Path(ctx.folder) / "ranks.json").read_text())
    assert written == {"policy": {f"model.layers.{layer}.self_attn.q_proj": 3 for layer in (0, 1)}}


@pytest.mark.slow
def test_a_killed_stage_repeats_no_row(context: Callable[[str], StageContext[Any]]) -> None:
    whole, killed = context("whole"), context("killed")
    trained(whole)
    with pytest.raises(Killed):
        trained(killed, dies_at=6)
    trained(killed)
    expected, found = read_metrics(whole.folder), read_metrics(killed.folder)
    assert [(row["step"], row["loss"], row["tokens"]) for row in found] == [
        (row["step"], row["loss"], row["tokens"]) for row in expected
    ]
    events = EventAccumulator(f"{killed.folder}/tensorboard", size_guidance={"scalars": 0}).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert [step for step, _ in losses] == [row["step"] for row in expected]
    assert [value for _, value in losses] == pytest.approx([row["loss"] for row in expected])
    assert {f"seconds_{part}" for part in PARTS} <= set(events.Tags()["scalars"])
