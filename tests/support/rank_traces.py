"""Losses of 20 steps, and again from the checkpoint at step 10: of one worker alone, or of two ranks."""

from pathlib import Path

import torch

from tests.support.gradient_cases import CASES, make_learner, make_model
from triptych.train import checkpoint
from triptych.train.batch import Batch
from triptych.train.learner import Learner

STEPS, SAVED = 20, 10
OBJECTIVE, BATCH = CASES["language"]


def train(folder: Path, strategy: str, method: str, checkpoints: str) -> list[float]:
    """The losses of all steps; the checkpoint is left in `checkpoints`."""
    learner = make(folder, strategy, method)
    writer = checkpoint.Writer(checkpoints, learner.group)
    losses = []
    for number in range(STEPS):
        losses.append(step(learner, number))
        if number + 1 == SAVED:
            state = learner.state()
            writer.save(SAVED, state.slices, state.numbers)
    writer.wait()
    learner.group.barrier()
    return losses


def resume(folder: Path, strategy: str, method: str, checkpoints: str) -> list[float]:
    """The losses of the steps after a checkpoint, whatever the strategy that wrote it."""
    saved = checkpoint.latest(checkpoints)
    assert saved is not None
    learner = make(folder, strategy, method)
    learner.load_state(saved.tensors, saved.state)
    return [step(learner, number) for number in range(SAVED, STEPS)]


def make(folder: Path, strategy: str, method: str) -> Learner:
    model = make_model(folder, torch.float32, roles=("policy",), method=method)
    return make_learner(model, strategy=strategy)


def step(learner: Learner, number: int) -> float:
    """Six of the eight rows, others at each step; rank 0 has one more micro-batch than rank 1."""
    rows = [(number + k) % 8 for k in range(6)]
    shares: list[list[list[int]]] = [[rows[:2], rows[2:3]], [rows[3:], []]] if learner.group.size == 2 else [[rows]]
    mine = shares[learner.group.rank]
    batches: list[Batch | None] = [BATCH(share, torch.float32) if share else None for share in mine]
    return learner.step(OBJECTIVE, batches).metrics["loss"]
