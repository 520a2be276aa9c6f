"""Objectives of reinforcement learning: an algorithm's losses of the policy and of the critic."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from triptych.algorithms.base import Credit, Loss
from triptych.algorithms.table import algorithm_of
from triptych.forward.roles import RoleModel
from triptych.recipe import Rl
from triptych.train.batch import Batch, response_mask, sample_batch
from triptych.train.learner import Metrics, Objective, Sums
from triptych.train.tasks.forward import response_logprobs, response_values
from triptych.train.tasks.task import Limits, Task


@dataclass(frozen=True)
class PolicyUpdate:
    """Policy loss over answer tokens; the batch has the columns of a `Credit`."""

    role: str
    compute: Loss
    temperature: float

    def denominators(self, batch: Batch) -> Sums:
        return {"policy": batch["length"].sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        mask = response_mask(batch["length"])
        logprobs = response_logprobs(model, batch, self.temperature)
        total, count, metrics = self.compute(logprobs, mask, Credit.of_columns(batch, mask.shape[1]))
        return {"policy": total}, {"policy_loss": (total, count)} | {k: (v, count) for k, v in metrics.items()}


@dataclass(frozen=True)
class ValueUpdate:
    """Value loss over answer tokens; the batch has the columns of a `Credit`, those of the critic included."""

    role: str
    compute: Loss

    def denominators(self, batch: Batch) -> Sums:
        return {"value": batch["length"].sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        mask = response_mask(batch["length"])
        values = response_values(model, batch)
        total, count, metrics = self.compute(values, mask, Credit.of_columns(batch, mask.shape[1]))
        return {"value": total}, {"loss": (total, count)} | {k: (v, count) for k, v in metrics.items()}


def objectives(stage: Rl, roles: Sequence[str]) -> list[Objective]:
    """The updates of the algorithm; `roles`: the policy, and the critic where the algorithm has one."""
    algorithm = algorithm_of(stage)
    updates: list[Objective] = [PolicyUpdate(roles[0], algorithm.policy_loss, stage.rollout.sampling.temperature)]
    if algorithm.value_loss is not None:
        updates.append(ValueUpdate(roles[1], algorithm.value_loss))
    return updates


def _full_batch(stage: Rl, limits: Limits) -> Batch:
    """Prompts and answers of the longest lengths, and what the objectives read of each answer's token."""
    rows, prompt = limits.rows(), max(1, limits.length - stage.rollout.sampling.max_new_tokens)
    cuts = [min(prompt, len(row) - 1) for row in rows]
    prompts = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
    batch = sample_batch(prompts, [row[cut:] for row, cut in zip(rows, cuts, strict=True)], 0)
    width = int(batch["length"].max())
    return batch | {field.name: torch.zeros(len(rows), width) for field in fields(Credit)}


TASK = Task(objectives, _full_batch)
