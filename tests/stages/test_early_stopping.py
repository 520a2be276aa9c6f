"""Early stopping in a stage's loop: which weights come back, after a restart too, and at what rank AdaLoRA ends."""

import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.loop import Killed, Mortal, Silent, rows
from triptych.forward.roles import RoleModel
from triptych.methods.adalora import export, ranks
from triptych.models.base import load_causal_lm
from triptych.observe.log import read_metrics
from triptych.recipe import Lora, Method
from triptych.recipe.matrix import AdaLora
from triptych.stages.context import StageContext
from triptych.stages.supervised import loop
from triptych.stages.supervised.loop import evaluate, fit
from triptych.train.checkpoint import copy
from triptych.train.learner import Learner
from triptych.train.tasks.language import LanguageModeling

Make = Callable[[dict[str, Any]], StageContext[Any]]
STEPS = 8
ADALORA = AdaLora(init_r=4, target_r=2, targets=("q_proj", "down_proj"), delta_t=3)
SITES = 4
LORA = Lora(r=4)


@pytest.fixture
def context(make_context: Make, tmp_path: Path) -> Callable[..., StageContext[Any]]:
    """Eight steps on the tiny model, measured after each; patience 2."""

    def make(run: str, **stopping: Any) -> StageContext[Any]:
        train = {
            "steps": STEPS,
            "optimizer": {"lr": 1e-2},
            "batch": {"rows": 4},
            "evaluate_every": 1,
            "checkpoint_every": 100,
            "early_stopping": {"patience": 2, **stopping},
        }
        data = {"train": {"path": "x"}, "heldout": {"path": "y"}}
        stage = {"kind": "sft", "method": {"name": "lora", "r": 4}, "data": data, "train": train}
        return replace(make_context(stage), run=str(tmp_path / run), progress=Silent(None))

    return make


class Measured:
    """Stands for the evaluation: told values step by step, and the weights that each was of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, values: dict[int, float]) -> None:
        self._values = values
        self.weights: dict[int, dict[str, Tensor]] = {}
        monkeypatch.setattr(loop, "evaluate", self._evaluate)

    def _evaluate(self, ctx: StageContext[Any], learner: Learner, *_: Any) -> dict[str, float]:
        step = learner.state().numbers["steps"]["policy"]
        self.weights[step] = {name: tensor.clone() for name, tensor in learner.weights("policy").items()}
        return {"heldout_loss": self._values[step]}


def fitted(ctx: StageContext[Any], method: Method = LORA, dies_at: int | None = None) -> Learner:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(ctx.base_dir, torch.float32))
    model.add("policy", method, trainable=True)
    learner = Learner(model, {"policy": ctx.stage.train.optimizer}, {"policy": STEPS})
    deaths = (step == dies_at for step in range(1, STEPS + 2))
    fit(ctx, learner, Mortal("policy", deaths), rows(), rows())
    return learner


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.mark.parametrize(
    ("values", "stopping", "best", "last"),
    [
        ([3.0, 1.0, 2.0, 2.5, 0.1], {}, 2, 4),
        ([math.nan, 1.0, 0.5, 0.6, 0.7, 0.1], {}, 3, 5),
        ([1.0, 2.0, 1.5, 1.8, 2.5], {"mode": "max"}, 2, 4),
        ([1.0, 0.95, 0.94, 0.1], {"min_delta": 0.1}, 1, 3),
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0], {}, 8, 8),
    ],
)
def test_the_best_weights_come_back(
    context: Callable[..., StageContext[Any]],
    monkeypatch: pytest.MonkeyPatch,
    values: list[float],
    stopping: dict[str, Any],
    best: int,
    last: int,
) -> None:
    measured = Measured(monkeypatch, dict(enumerate(values, 1)))
    ctx = context("run", **stopping)
    learner = fitted(ctx)
    assert list(measured.weights) == list(range(1, last + 1))
    assert same(learner.weights("policy"), measured.weights[best])
    assert last == best or not same(measured.weights[last], measured.weights[best])
    assert [row["step"] for row in read_metrics(ctx.folder)] == list(range(1, last + 1))


def test_without_any_number_the_last_weights_stay(
    context: Callable[..., StageContext[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = Measured(monkeypatch, dict.fromkeys(range(1, 4), math.nan))
    learner = fitted(context("run"))
    assert list(measured.weights) == [1, 2]
    assert same(learner.weights("policy"), measured.weights[2])


@pytest.mark.slow
@pytest.mark.parametrize("dies_at", [3, 4])
def test_a_restart_waits_no_longer_and_forgets_no_best(
    context: Callable[..., StageContext[Any]], monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    measured = Measured(monkeypatch, dict(enumerate([3.0, 1.0, 2.0, 2.5, 0.1], 1)))
    whole = fitted(context("whole")).weights("policy")
    killed = context("killed")
    killed = replace(killed, stage=_saving_each_step(killed.stage))
    with pytest.raises(Killed):
        fitted(killed, dies_at=dies_at)
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint"):
            thread.join()  # a process that dies later has written its checkpoint
    measured.weights.clear()
    assert same(fitted(killed).weights("policy"), whole)
    assert list(measured.weights) == list(range(dies_at, 5))


def test_a_stage_forked_from_another_has_a_best_of_its_own(
    context: Callable[..., StageContext[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The donor's best checkpoint is not there, and belongs to other settings."""
    Measured(monkeypatch, {1: 0.1, 2: 3.0, 3: 3.0})
    donor = context("donor")
    fitted(donor)
    forked = replace(context("forked"), forked_at=3)
    copy(donor.checkpoints, forked.checkpoints, 3)
    measured = Measured(monkeypatch, {3: 2.0, 4: 2.5, 5: 2.1})
    learner = fitted(forked)
    assert list(measured.weights) == [3, 4, 5]
    assert same(learner.weights("policy"), measured.weights[3])


@pytest.mark.parametrize("best", [1, 2, 5])
def test_adalora_comes_out_at_its_target_rank_and_as_it_was_measured(
    context: Callable[..., StageContext[Any]], monkeypatch: pytest.MonkeyPatch, best: int
) -> None:
    """Whichever step was best: before, between and after allocations, when entries have grown back."""
    values = dict.fromkeys(range(1, STEPS + 1), 5.0) | {step: 3.0 - 0.1 * step for step in range(1, best + 1)}
    Measured(monkeypatch, values)
    ctx = context("run")
    learner = fitted(ctx, ADALORA)
    assert learner.state().numbers["steps"]["policy"] == best
    state = learner.weights("policy")
    assert sum(ranks(state).values()) == 2 * SITES
    found = export(ADALORA, state)
    assert sum(a.shape[0] for name, a in found.weights.items() if "lora_A" in name) == 2 * SITES

    again = RoleModel(load_causal_lm(ctx.base_dir, torch.float32))
    again.add("policy", found.method, trainable=True, weights=found.weights)
    served = Learner(again, {"policy": ctx.stage.train.optimizer}, {"policy": 1})
    objective = LanguageModeling("policy")
    losses = [evaluate(ctx, one, objective, rows())["heldout_loss"] for one in (learner, served)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def _saving_each_step(stage: Any) -> Any:
    return stage.model_copy(update={"train": stage.train.model_copy(update={"checkpoint_every": 1})})
