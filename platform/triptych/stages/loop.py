"""The loop that supervised stages share: rows -> micro-batches -> optimiser steps, with checkpoints."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from triptych import storage
from triptych.data.batches import epoch_order, micro_batches, packed_micro_batches
from triptych.observe.log import MetricsLog
from triptych.observe.metrics import TrainMetrics
from triptych.recipe import Classification, Reward, Sft
from triptych.stages.context import StageContext
from triptych.train import checkpoint
from triptych.train.batch import Batch
from triptych.train.learner import Learner, Objective
from triptych.train.stopping import Stopper
from triptych.train.usage import peak_memory


@dataclass(frozen=True)
class Rows:
    """Rows by index: the sequences of tokens that each is made of, and how some rows become a batch."""

    sequences: Sequence[Sequence[Sequence[int]]]
    batch: Callable[[Sequence[int]], Batch]

    def micro_batches(self, rows: Sequence[int], budget: int, learner: Learner) -> list[Batch | None]:
        """This rank's micro-batches of the given rows."""
        chosen = [self.sequences[row] for row in rows]
        if learner.model.packing:
            ranks = packed_micro_batches(chosen, budget, learner.group.size)
        else:
            ranks = micro_batches([len(row) * max(map(len, row)) for row in chosen], budget, learner.group.size)
        return [self.batch([rows[place] for place in micro]) if micro else None for micro in ranks[learner.group.rank]]

    def tokens(self, rows: Sequence[int]) -> int:
        """Padding apart."""
        return sum(len(sequence) for row in rows for sequence in self.sequences[row])


def total_steps(stage: Sft | Classification | Reward, rows: int) -> int:
    """Optimiser steps of the whole stage; each epoch ends with what is left, however few."""
    if stage.train.steps is not None:
        return stage.train.steps
    return math.ceil((stage.train.epochs or 0) * math.ceil(rows / stage.train.batch.rows))


def fit(ctx: StageContext[Any], learner: Learner, objective: Objective, train: Rows, heldout: Rows | None) -> None:
    """Train from the last checkpoint to the end. Every rank calls it; rank 0 writes the metrics."""
    training = ctx.stage.train
    total = total_steps(ctx.stage, len(train.sequences))
    writer = checkpoint.Writer(ctx.checkpoints, learner.group)
    stopper = Stopper(training.early_stopping) if training.early_stopping else None
    done = _resume(ctx, learner, stopper)
    log, gauges = MetricsLog(ctx.folder), TrainMetrics(ctx.recipe.name, ctx.name)
    if learner.group.rank == 0:
        log.truncate(done)
    for step in range(done, total):
        if stopper and stopper.stops:
            break
        row, seconds = _step(ctx, learner, objective, train, step)
        best = False
        if heldout and training.evaluate_every and (step + 1) % training.evaluate_every == 0:
            measured = evaluate(ctx, learner, objective, heldout)
            best = stopper is not None and stopper.judge(step + 1, measured)
            row |= measured
        if learner.group.rank == 0:
            log.add(row)
            gauges.record(row, seconds)
            ctx.progress.update(ctx.name, step + 1, total, {k: row[k] for k in ("loss", "tokens_per_second")})
        stops = stopper is not None and stopper.stops
        if best or stops or (step + 1) % training.checkpoint_every == 0 or step + 1 == total:
            _save(learner, log, writer, step + 1, stopper)
    writer.wait()
    if stopper and stopper.best_step is not None:
        best_one = checkpoint.load(ctx.checkpoints, stopper.best_step)
        learner.load_state(best_one.tensors, best_one.state["learner"])


def evaluate(ctx: StageContext[Any], learner: Learner, objective: Objective, heldout: Rows) -> dict[str, float]:
    """The objective's metrics on held-out rows, as `heldout_*`."""
    micro = heldout.micro_batches(range(len(heldout.sequences)), ctx.stage.train.batch.micro_tokens, learner)
    return {f"heldout_{name}": value for name, value in learner.evaluate(objective, micro).items()}


def step_rows(rows: int, batch: int, seed: int, step: int) -> list[int]:
    """The rows of one optimiser step: each epoch visits every row once, in an order of its own."""
    epoch, position = divmod(step, math.ceil(rows / batch))
    return epoch_order(rows, seed, epoch)[position * batch : (position + 1) * batch]


def _step(
    ctx: StageContext[Any], learner: Learner, objective: Objective, train: Rows, step: int
) -> tuple[dict[str, float], dict[str, float]]:
    """One optimiser step: what the log has of it, and its seconds by part."""
    training = ctx.stage.train
    started = time.perf_counter()
    torch.manual_seed(_step_seed(ctx.recipe.seed, step, learner.group.rank))  # dropout, if any
    rows = step_rows(len(train.sequences), training.batch.rows, ctx.recipe.seed, step)
    batches = train.micro_batches(rows, training.batch.micro_tokens, learner)
    loading = time.perf_counter() - started
    report = learner.step(objective, batches)
    seconds = report.seconds | {"data": report.seconds["data"] + loading}
    whole = time.perf_counter() - started
    row = {"step": step + 1, "tokens_per_second": train.tokens(rows) / whole, "step_seconds": whole}
    row |= report.metrics | {"peak_memory_bytes": max(learner.group.gather(peak_memory(learner.model.device)))}
    return row | {f"seconds_{part}": value for part, value in seconds.items()}, seconds


def _resume(ctx: StageContext[Any], learner: Learner, stopper: Stopper | None) -> int:
    last = checkpoint.latest(ctx.checkpoints)
    if last is None:
        return 0
    learner.load_state(last.tensors, last.state["learner"])
    if stopper:
        stopper.load_state(last.state["stopper"])
    return last.step


def _save(learner: Learner, log: MetricsLog, writer: checkpoint.Writer, step: int, stopper: Stopper | None) -> None:
    if learner.group.rank == 0:
        log.flush(step)
    state = learner.state()
    numbers = {"learner": state.numbers, "stopper": stopper.state() if stopper else None}
    writer.save(step, state.slices, numbers, best=stopper.best_step if stopper else None)


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(storage.digest_of([seed, step, rank])[:15], 16)
