"""Clipped policy and value objectives: the updates of PPO."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from triptych.forward.roles import RoleModel
from triptych.objectives.policy import ppo_policy_loss, ppo_value_loss
from triptych.recipe import Rl
from triptych.train.batch import Batch, response_mask, sample_batch
from triptych.train.learner import Metrics, Objective, Sums
from triptych.train.tasks.forward import response_logprobs, response_values
from triptych.train.tasks.task import Limits, Task


@dataclass(frozen=True)
class PolicyUpdate:
    """Clipped policy objective; needs `old_logprobs`, `advantages`, `weights` [B, R] in the batch."""

    role: str
    clip: float
    temperature: float

    def denominators(self, batch: Batch) -> Sums:
        return {"policy": batch["length"].sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        mask = response_mask(batch["length"])
        logprobs = response_logprobs(model, batch, self.temperature)
        width = mask.shape[1]
        old, advantages, weights = (batch[name][:, :width] for name in ("old_logprobs", "advantages", "weights"))
        total, count, metrics = ppo_policy_loss(logprobs, old, advantages, mask, self.clip, weights=weights)
        return {"policy": total}, {"policy_loss": (total, count)} | {k: (v, count) for k, v in metrics.items()}


@dataclass(frozen=True)
class ValueUpdate:
    """Clipped value objective; needs `old_values`, `returns` [B, R] in the batch."""

    role: str
    clip: float | None

    def denominators(self, batch: Batch) -> Sums:
        return {"value": batch["length"].sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        mask = response_mask(batch["length"])
        values = response_values(model, batch)
        width = mask.shape[1]
        old, returns = batch["old_values"][:, :width], batch["returns"][:, :width]
        total, count, metrics = ppo_value_loss(values, old, returns, mask, self.clip)
        return {"value": total}, {"loss": (total, count)} | {k: (v, count) for k, v in metrics.items()}


def _objectives(stage: Rl, roles: Sequence[str]) -> list[Objective]:
    policy, critic = roles
    temperature, ppo = stage.rollout.sampling.temperature, stage.algorithm
    return [PolicyUpdate(policy, ppo.clip, temperature), ValueUpdate(critic, ppo.value_clip)]


def _full_batch(stage: Rl, limits: Limits) -> Batch:
    """Prompts and answers of the longest lengths, and what the objectives read of each answer's token."""
    rows, prompt = limits.rows(), stage.rollout.max_prompt_tokens
    cuts = [min(prompt, len(row) - 1) for row in rows]
    prompts = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
    batch = sample_batch(prompts, [row[cut:] for row, cut in zip(rows, cuts, strict=True)], 0)
    width = int(batch["length"].max())
    names = ("old_logprobs", "advantages", "weights", "old_values", "returns")
    return batch | {name: torch.zeros(len(rows), width) for name in names}


TASK = Task(_objectives, _full_batch)
