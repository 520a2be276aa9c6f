"""Stop rules in a stage's loop: it ends in order and with the right weights, in the engines and after a restart too."""

import json
import logging
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.loop import Killed
from tests.support.rl_step import POLICY, RlWorker, make_run, pool_of
from triptych import storage
from triptych.observe.log import read_metrics
from triptych.stages.rl import loop
from triptych.stages.rl.loop import fit
from triptych.stages.rl.stopping import devices_of, read_ending
from triptych.train import checkpoint

pytestmark = pytest.mark.slow

Make = Callable[..., RlWorker]
STEPS = 3
SMALL = {"prompts_per_step": 1, "samples_per_prompt": 2, "sampling": {"max_new_tokens": 3, "temperature": 0.7}}


@pytest.fixture
def make(tiny_model_dir: Path, tmp_path: Path) -> Make:
    """A run of three small steps that is measured after each, and has a checkpoint only where one is needed."""

    def made(name: str = "run", **terms: Any) -> RlWorker:
        train = {"steps": STEPS, "evaluate_every": 1, "checkpoint_every": 100}
        terms = {"rollout": SMALL} | train | terms
        return make_run(tiny_model_dir, tmp_path / name, dtype=torch.float32, **terms)

    return made


class Told:
    """Stands for the evaluation: told rewards and judges by step, and the weights that each was of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rewards: list[float], judges: list[float] | None = None):
        self._rewards, self._judges = rewards, judges or [0.0] * len(rewards)
        self.weights: dict[str, dict[str, Tensor]] = {}
        self.dies_at: int | None = None
        monkeypatch.setattr(loop, "evaluate", self._evaluate)

    def _evaluate(self, worker: RlWorker, label: str) -> dict[str, float]:
        weights = worker.learner.weights(POLICY)
        self.weights[label] = {name: tensor.clone() for name, tensor in weights.items()}
        if label == "after":
            return {}
        step = 0 if label == "before" else int(label.removeprefix("step-"))
        if step == self.dies_at:
            raise Killed
        return {"heldout_reward": self._rewards[step], "heldout_judge": self._judges[step]}


class Follower:
    """A monitor that asks for evaluations at steps 2 and 3, and looks at what is there when it is told of one."""

    def __init__(self, run: RlWorker) -> None:
        self.run, self.seen = run, list[tuple[int, int, list[int]]]()

    def wants(self, step: int) -> bool:
        return step in (2, 3)

    def evaluated(self, step: int) -> None:
        rows = read_metrics(self.run.ctx.folder)
        assert "heldout_reward" in rows[-1]
        self.seen.append((step, last_checkpoint(self.run), [row["step"] for row in rows]))


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def label(step: int) -> str:
    return f"step-{step:08d}" if step else "before"


def last_checkpoint(run: RlWorker) -> int:
    found = checkpoint.latest(run.ctx.checkpoints)
    assert found is not None
    return found.step


def test_a_kl_that_blows_up_ends_the_stage_in_order(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """Policy and reference are equal in the first step, so the limit is passed in the second and third."""
    larger = SMALL | {"prompts_per_step": 3, "sampling": {"max_new_tokens": 6, "temperature": 0.7}}
    run = make(steps=5, rollout=larger, stopping={"kl": {"limit": 1e-9, "patience": 2}})
    with caplog.at_level(logging.WARNING):
        metrics = fit(run)
    rows = read_metrics(run.ctx.folder)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert last_checkpoint(run) == 3
    assert math.isfinite(metrics["heldout_reward"])
    assert storage.list_files(storage.join(run.ctx.folder, "evaluations"))[:2] == ["after.json", "before.json"]
    ending = read_ending(run.ctx)
    assert ending["stopped"]["rule"] == "kl"
    assert ending["stopped"]["step"] == 3
    assert ending["stopped"]["numbers"] == {"kl": pytest.approx(rows[2]["kl"]), "limit": 1e-9, "steps": 2}
    assert "best_step" not in ending
    assert "stage rl ended at step 3 by train.stopping.kl: the KL was above 1e-09 nats" in caplog.text
    assert "the last weights are kept" in caplog.text


def test_sampled_tokens_are_those_of_the_log(make: Make) -> None:
    run = make(stopping={"budget": {"sampled_tokens": 8}})
    fit(run)
    rows = read_metrics(run.ctx.folder)
    assert sum(row["tokens"] for row in rows) >= 8 > sum(row["tokens"] for row in rows[:-1])
    assert read_ending(run.ctx)["stopped"]["rule"] == "budget"


@pytest.mark.parametrize(
    ("rewards", "rule", "judges", "best", "last"),
    [
        ([5.0, 1.0, 2.0, 9.0], {"heldout": {"patience": 2}}, None, 0, 2),
        ([0.0, 1.0, 2.0, 3.0], {"heldout": {"patience": 2}}, None, 3, 3),
        ([0.0, 1.0, 2.0, 9.0], {"hacking": {"margin": 0.1, "patience": 1}}, [0.5, 0.5, 0.3, 0.9], 1, 2),
    ],
)
def test_the_best_weights_come_back_to_learner_and_engines(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    rewards: list[float],
    rule: dict[str, Any],
    judges: list[float] | None,
    best: int,
    last: int,
) -> None:
    told = Told(monkeypatch, rewards, judges)
    run = make(stopping=rule)
    fit(run)
    assert list(told.weights) == [*map(label, range(last + 1)), "after"]
    assert same(told.weights["after"], told.weights[label(best)])
    assert best == last or not same(told.weights["after"], told.weights[label(last)])
    assert pool_of(run).version == (last if best == last else last + 1)  # `sync_policy` compares what engines compute
    ending = read_ending(run.ctx)
    assert ending["best_step"] == best
    assert ("stopped" in ending) == (last < STEPS)


@pytest.mark.parametrize("dies_at", [1, 3])
def test_a_restart_ends_at_the_same_step_with_the_same_weights(
    make: Make, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    told = Told(monkeypatch, [0.0, 1.0, 0.5, 0.8, 9.0])
    terms: dict[str, Any] = {"steps": 4, "stopping": {"heldout": {"patience": 2}}, "checkpoint_every": 1}
    whole = make("whole", **terms)
    fit(whole)
    told.dies_at = dies_at
    with pytest.raises(Killed):
        fit(make("killed", **terms))
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint"):
            thread.join()  # a process that dies later has written its checkpoint
    told.dies_at = None
    expected = told.weights["after"]
    told.weights.clear()
    again = make("killed", **terms)
    fit(again)
    begun = ["before"] if dies_at == 1 else []  # there is a checkpoint of step 0, at which it is measured
    assert list(told.weights) == [*begun, *map(label, range(dies_at, 4)), "after"]
    assert read_ending(again.ctx) == read_ending(whole.ctx)
    assert same(told.weights["after"], expected)


def test_a_restart_after_the_end_takes_no_step(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told(monkeypatch, [0.0, 1.0, 0.5, 9.0])
    rules = {"heldout": {"patience": 1}}
    fit(make(stopping=rules))
    kept = told.weights["after"]
    told.weights.clear()
    again = make(stopping=rules)
    fit(again)
    assert list(told.weights) == ["after"]
    assert same(told.weights["after"], kept)
    assert json.loads(json.dumps(read_ending(again.ctx)))["stopped"]["step"] == 2


def test_whoever_follows_a_stage_is_told_of_what_is_committed(make: Make) -> None:
    """As ASHA is: at its rungs, here steps 2 and 3, but not after the last step, which the stage's summary tells of."""
    run = make(evaluate_every=None)
    follower = Follower(run)
    run.ctx = replace(run.ctx, monitor=follower)
    fit(run)
    assert follower.seen == [(2, 2, [1, 2])]


def test_devices_are_gpus_where_there_are_any(make: Make) -> None:
    """The tiny run has one worker of one CPU, and two engines of half a CPU."""
    ctx = make().ctx
    assert devices_of(ctx) == pytest.approx(ctx.stage.workers.cpus + ctx.stage.rollout.engines * ctx.stage.rollout.cpus)
    stage = ctx.stage.model_copy(
        update={
            "train": ctx.stage.train.model_copy(
                update={"workers": ctx.stage.train.workers.model_copy(update={"count": 4, "gpus": 1.0})}
            ),
            "rollout": ctx.stage.rollout.model_copy(update={"engines": 2, "gpus": 0.5}),
        }
    )
    assert devices_of(replace(ctx, stage=stage)) == 5.0
