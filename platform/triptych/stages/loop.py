"""The loop that SFT and reward stages share: rows -> micro-batches -> optimiser steps, with checkpoints."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from triptych import storage
from triptych.data.batches import epoch_order, micro_batches
from triptych.observe.log import MetricsLog
from triptych.observe.metrics import TrainMetrics
from triptych.recipe import Reward, Sft
from triptych.stages.context import StageContext
from triptych.train import checkpoint
from triptych.train.batch import Batch
from triptych.train.learner import Learner, Objective


@dataclass(frozen=True)
class Rows:
    """Rows by index: their lengths in tokens (padding excluded), and how some of them become a batch."""

    lengths: Sequence[int]
    batch: Callable[[list[int]], Batch]

    def micro_batches(self, rows: Sequence[int], budget: int, learner: Learner) -> list[Batch | None]:
        """This rank's micro-batches of the given rows."""
        mine = micro_batches([self.lengths[row] for row in rows], budget, learner.group.size)[learner.group.rank]
        return [self.batch([rows[index] for index in micro]) if micro else None for micro in mine]


def total_steps(stage: Sft | Reward, rows: int) -> int:
    """Optimiser steps of the whole stage; each epoch ends with what is left, however few."""
    if stage.train.steps is not None:
        return stage.train.steps
    return math.ceil((stage.train.epochs or 0) * math.ceil(rows / stage.train.batch.rows))


def fit(ctx: StageContext[Any], learner: Learner, objective: Objective, train: Rows, heldout: Rows | None) -> None:
    """Train from the last checkpoint to the end. Every rank calls it; rank 0 writes."""
    training = ctx.stage.train
    total = total_steps(ctx.stage, len(train.lengths))
    done = _resume(ctx, learner)
    log = MetricsLog(ctx.folder)
    gauges = TrainMetrics(ctx.recipe.name, ctx.name)
    if learner.group.rank == 0:
        log.truncate(done)
    for step in range(done, total):
        started = time.perf_counter()
        torch.manual_seed(_step_seed(ctx.recipe.seed, step, learner.group.rank))  # dropout, if any
        rows = step_rows(len(train.lengths), training.batch.rows, ctx.recipe.seed, step)
        report = learner.step(objective, train.micro_batches(rows, training.batch.micro_tokens, learner))
        seconds = time.perf_counter() - started
        tokens_per_second = sum(train.lengths[row] for row in rows) / seconds
        row = {"step": step + 1, "tokens_per_second": tokens_per_second, "step_seconds": seconds} | report.metrics
        if heldout and training.evaluate_every and (step + 1) % training.evaluate_every == 0:
            row |= evaluate(ctx, learner, objective, heldout)
        if learner.group.rank == 0:
            log.add(row | {f"seconds_{part}": value for part, value in report.seconds.items()})
            gauges.record(row, report.seconds)
            ctx.progress.update(ctx.name, step + 1, total, {k: row[k] for k in ("loss", "tokens_per_second")})
        if (step + 1) % training.checkpoint_every == 0 or step + 1 == total:
            _save(ctx, learner, log, step + 1)


def evaluate(ctx: StageContext[Any], learner: Learner, objective: Objective, heldout: Rows) -> dict[str, float]:
    """The objective's metrics on held-out rows, as `heldout_*`."""
    micro = heldout.micro_batches(range(len(heldout.lengths)), ctx.stage.train.batch.micro_tokens, learner)
    return {f"heldout_{name}": value for name, value in learner.evaluate(objective, micro).items()}


def step_rows(rows: int, batch: int, seed: int, step: int) -> list[int]:
    """The rows of one optimiser step: each epoch visits every row once, in an order of its own."""
    epoch, position = divmod(step, math.ceil(rows / batch))
    return epoch_order(rows, seed, epoch)[position * batch : (position + 1) * batch]


def _resume(ctx: StageContext[Any], learner: Learner) -> int:
    last = checkpoint.latest(ctx.checkpoints)
    if last is None:
        return 0
    learner.load_state(last.tensors, last.state["steps"])
    return last.step


def _save(ctx: StageContext[Any], learner: Learner, log: MetricsLog, step: int) -> None:
    if learner.group.rank == 0:
        tensors, steps = learner.state()
        log.flush(step)
        checkpoint.save(ctx.checkpoints, step, tensors, {"steps": steps})
    learner.group.barrier()


def _step_seed(seed: int, step: int, rank: int) -> int:
    return int(storage.digest_of([seed, step, rank])[:15], 16)
