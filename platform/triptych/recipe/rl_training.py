"""Training settings of reinforcement learning: its schedule, steps and updates."""

import math
from typing import Literal

from pydantic import field_validator

from triptych.recipe.base import Closed, Count, NoEffect
from triptych.recipe.stopping import StopRules
from triptych.recipe.training import BatchBase, Optimizer, TrainingBase, Workers


class Synchronous(Closed):
    """Sample, then learn: every answer is of the newest weights."""

    name: Literal["sync"] = "sync"
    """Name of the schedule."""


class RlBatch(BatchBase):
    """Minibatches and epochs in which the samples of a step are learned from."""

    epochs: Count = 1
    """Passes over the samples of a step."""
    minibatches: Count = 1
    """Optimiser steps a pass."""


class RlTraining(TrainingBase):
    """Training on samples: a step samples, scores and updates."""

    steps: Count
    """Steps of the stage, each with its own samples."""
    optimizer: Optimizer = Optimizer(lr=1e-4)
    """Optimizer of the policy."""
    batch: RlBatch = RlBatch()
    """Updates of a step, and size of micro-batches."""
    workers: NoEffect[Workers] = Workers()
    """Ray Train workers, by default of two threads or more: the engines rest while the learner works."""
    checkpoint_every: NoEffect[Count] = 4
    """Steps between checkpoints."""
    evaluate_every: Count | None = None
    """Steps between measurements on held-out prompts; None: before the first and after the last only."""
    stopping: StopRules | None = None
    """Rules and budgets that end the stage before its last step."""

    @field_validator("workers")
    @classmethod
    def _threads_while_engines_rest(cls, workers: Workers) -> Workers:
        if workers.threads is not None:
            return workers
        return workers.model_copy(update={"threads": max(2, math.ceil(workers.cpus))})

    def total_steps(self, rows: int) -> int:
        """Steps of the whole stage, however many prompts there are."""
        return self.steps
