"""The loop that supervised stages share: rows -> micro-batches -> optimiser steps, with checkpoints."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from triptych import storage
from triptych.data.batches import cut, step_rows
from triptych.observe.metrics import TrainMetrics
from triptych.stages.context import StageContext
from triptych.stages.recorder import Recorder
from triptych.stages.supervised.meter import Meter
from triptych.train import checkpoint
from triptych.train.batch import Batch
from triptych.train.learner import Learner, Objective
from triptych.train.stepping import StepRequest, TrainingSteps, run_training
from triptych.train.stopping import Stopper


@dataclass(frozen=True)
class Rows:
    """Rows by index: the sequences of tokens that each is made of, and how some rows become a batch."""

    sequences: Sequence[Sequence[Sequence[int]]]
    batch: Callable[[Sequence[int]], Batch]

    def micro_batches(self, rows: Sequence[int], budget: int, learner: Learner) -> list[Batch | None]:
        """This rank's micro-batches of the given rows."""
        own = self.cut(rows, budget, learner.group.size, packing=learner.model.packing)[learner.group.rank]
        return [self.batch(micro) if micro else None for micro in own]

    def all_batches(self, rows: Sequence[int], budget: int, *, packing: bool) -> Iterator[Batch]:
        """The micro-batches of the given rows, all on one rank."""
        return (self.batch(micro) for micro in self.cut(rows, budget, 1, packing=packing)[0] if micro)

    def cut(self, rows: Sequence[int], budget: int, ranks: int, *, packing: bool) -> list[list[list[int]]]:
        """Rank -> its micro-batches -> their rows."""
        found = cut([self.sequences[row] for row in rows], budget, ranks, packing=packing)
        return [[[rows[place] for place in micro] for micro in own] for own in found]


def fit(ctx: StageContext[Any], learner: Learner, objective: Objective, train: Rows, heldout: Rows | None) -> None:
    """Train from the last checkpoint to the end. Every rank calls it; rank 0 writes the metrics."""
    run_training(fitting(ctx, learner, objective, train, heldout))


def fitting(
    ctx: StageContext[Any], learner: Learner, objective: Objective, train: Rows, heldout: Rows | None
) -> TrainingSteps[None]:
    """`fit`, whose steps are taken by whoever iterates it."""
    training = ctx.stage.train
    total = training.total_steps(len(train.sequences))
    writer = checkpoint.Writer(ctx.checkpoints, learner.group)
    stopper = Stopper(training.early_stopping) if training.early_stopping else None
    done, meter = _resume(ctx, learner, stopper), Meter(ctx, learner)
    shown = ("loss", "tokens_per_second")
    with Recorder(ctx, TrainMetrics, learner.group.rank, shown, done=done, total=total) as recorder:
        if heldout and done and done == ctx.forked_at:
            _begin_fork(ctx, learner, objective, heldout, recorder, stopper)
            _pause(ctx, learner, writer, done)
        for step in range(done + 1, total + 1):
            if stopper and stopper.stops:
                break
            yield from _step(ctx, learner, objective, train, step - 1, meter)
            measured: dict[str, float] = {}
            if heldout and _is_evaluated(ctx, step):
                with meter.timed("evaluate"):
                    measured = evaluate(ctx, learner, objective, heldout)
            best = bool(measured) and stopper is not None and stopper.judge(step, measured)
            stops = stopper is not None and stopper.stops
            pauses = bool(measured) and ctx.monitor is not None and step < total and not stops
            saves = best or stops or pauses or step % training.checkpoint_every == 0 or step == total
            if measured or saves or step % training.log_every == 0:
                recorder.record(meter.row(step) | measured)
            if saves:
                with meter.timed("checkpoint"):
                    _save(learner, recorder, writer, step, stopper)
            if pauses:
                _pause(ctx, learner, writer, step)
        with meter.timed("checkpoint"):
            writer.wait()
        recorder.count(meter.spent())
    if stopper and stopper.best_step is not None:
        learner.group.barrier()  # rank 0 commits last, and all read
        best_one = checkpoint.load(ctx.checkpoints, stopper.best_step)
        learner.load_state(best_one.tensors, best_one.state["learner"])
    learner.settle()


def evaluate(ctx: StageContext[Any], learner: Learner, objective: Objective, heldout: Rows) -> dict[str, float]:
    """The objective's metrics on held-out rows, as `heldout_*`; where it gives `f1_*`, their mean is `macro_f1`."""
    micro = heldout.micro_batches(range(len(heldout.sequences)), ctx.stage.train.batch.micro_tokens, learner)
    metrics = learner.evaluate(objective, micro)
    scores = [value for name, value in metrics.items() if name.startswith("f1_")]
    metrics |= {"macro_f1": sum(scores) / len(scores)} if scores else {}
    return {f"heldout_{name}": value for name, value in metrics.items()}


def _step(
    ctx: StageContext[Any], learner: Learner, objective: Objective, train: Rows, step: int, meter: Meter
) -> TrainingSteps[None]:
    """One optimiser step, and its time."""
    training = ctx.stage.train
    started = time.perf_counter()
    torch.manual_seed(_step_seed(ctx.recipe.seed, step, learner.group.rank))  # dropout, if any
    rows = step_rows(len(train.sequences), training.batch.rows, ctx.recipe.seed, step)
    batches = train.micro_batches(rows, training.batch.micro_tokens, learner)
    loading = time.perf_counter() - started
    report = yield StepRequest(learner, objective, batches)
    meter.step(report, batches, started, loading)


def _begin_fork(
    ctx: StageContext[Any],
    learner: Learner,
    objective: Objective,
    heldout: Rows,
    recorder: Recorder,
    stopper: Stopper | None,
) -> None:
    """Measure the copied checkpoint that the stage begins from: its first row, and the first that may be best."""
    step = ctx.forked_at or 0
    measured = evaluate(ctx, learner, objective, heldout)
    if stopper:
        stopper.judge(step, measured)
    recorder.record({"step": step} | measured)
    recorder.flush(step)


def _resume(ctx: StageContext[Any], learner: Learner, stopper: Stopper | None) -> int:
    """Steps done, with everything as it was then. What another stage found best stays with that one's checkpoints."""
    last = checkpoint.latest(ctx.checkpoints)
    if last is None:
        return 0
    learner.load_state(last.tensors, last.state["learner"])
    if stopper and last.step != ctx.forked_at:
        stopper.load_state(last.state["stopper"])
    return last.step


def _save(learner: Learner, recorder: Recorder, writer: checkpoint.Writer, step: int, stopper: Stopper | None) -> None:
    recorder.flush(step)
    state = learner.state()
    numbers = {"learner": state.numbers, "stopper": stopper.state() if stopper else None}
    writer.save(step, state.slices, numbers, best=stopper.best_step if stopper else None)


def _is_evaluated(ctx: StageContext[Any], step: int) -> bool:
    every = ctx.stage.train.evaluate_every
    return bool(every and step % every == 0) or (ctx.monitor is not None and ctx.monitor.wants(step))


def _pause(ctx: StageContext[Any], learner: Learner, writer: checkpoint.Writer, step: int) -> None:
    """Let the stage's monitor say when to go on; the other ranks wait for rank 0 in their next collective."""
    writer.wait()
    if ctx.monitor is not None and learner.group.rank == 0:
        ctx.monitor.evaluated(step)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(storage.digest_of([seed, step, rank])[:15], 16)
