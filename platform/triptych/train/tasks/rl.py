"""Objectives of reinforcement learning: an algorithm's losses of the policy and of the critic."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
from torch import Tensor

from triptych.algorithms.base import Credit, Loss
from triptych.algorithms.table import algorithm_of
from triptych.forward.roles import RoleModel
from triptych.objectives.aggregation import TOKENS, Aggregation
from triptych.objectives.kl import kl_penalty
from triptych.objectives.masking import keep
from triptych.recipe import Rl
from triptych.train.batch import Batch, answer_mask, sample_batch
from triptych.train.learner import Metrics, Objective, Sums
from triptych.train.tasks.forward import response_states, response_values, spread
from triptych.train.tasks.task import Limits, Task
from triptych.train.tasks.teaching import Teaching, teaching_of


@dataclass(frozen=True)
class KlLoss:
    """KL penalty in the policy's loss."""

    coef: float
    kind: Literal["k1", "k2", "k3"]

    def of(self, logprobs: Tensor, reference: Tensor, shares: Tensor) -> Tensor:
        """Sum over tokens, a scalar, from log-probabilities and each token's share in the sum; all [B, R]."""
        read = shares > 0
        penalty = kl_penalty(keep(logprobs, read), keep(reference, read), kind=self.kind)
        return self.coef * (penalty * shares.to(penalty.dtype)).sum()


@dataclass(frozen=True)
class PolicyUpdate:
    """Policy loss over answer tokens; the batch has the columns of a `Credit`.

    `teaching`: what a teacher adds to it over the whole vocabulary.
    """

    role: str
    compute: Loss
    temperature: float
    aggregation: Aggregation = TOKENS
    kl: KlLoss | None = None
    teaching: Teaching | None = None

    def denominators(self, batch: Batch) -> Sums:
        named = {"policy": True, "kl": self.kl is not None, "distillation": self.teaching is not None}
        return dict.fromkeys([name for name, there in named.items() if there], self._divisor(batch))

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        teacher = None if self.teaching is None else self.teaching.predictions(model, batch)
        states, labels = response_states(model, batch)
        mask = answer_mask(batch)
        shares = self.aggregation.shares(mask)
        parts, metrics = self._credited(spread(model.logprobs(states, labels, self.temperature), batch), batch, shares)
        if self.teaching is not None and teacher is not None:
            total, found = self.teaching.of(model.predictions(states), teacher, shares[mask])
            metrics |= found | {"distillation_loss": (total, self._divisor(batch))}
            parts["distillation"] = total
        return parts, metrics

    def _credited(self, logprobs: Tensor, batch: Batch, shares: Tensor) -> tuple[Sums, Metrics]:
        """The algorithm's loss, and the KL penalty where it stands in it, from log-probabilities [B, R]."""
        mask, divisor = answer_mask(batch), self._divisor(batch)
        credit = Credit.of_columns(batch, mask.shape[1])
        weighted = replace(credit, weights=credit.weights * shares.to(credit.weights.dtype))
        total, count, sums = self.compute(logprobs, mask, weighted)
        parts, metrics = {"policy": total}, {name: (value, count) for name, value in sums.items()}
        if self.kl is not None:
            assert credit.reference is not None
            parts["kl"] = self.kl.of(logprobs, credit.reference, shares)
            metrics["kl_loss"] = (parts["kl"], divisor)
        return parts, {"policy_loss": (total, divisor)} | metrics

    def _divisor(self, batch: Batch) -> Tensor:
        return self.aggregation.divisor(answer_mask(batch).sum(dim=1))


@dataclass(frozen=True)
class ValueUpdate:
    """Value loss over answer tokens; the batch has the columns of a `Credit`, those of the critic included."""

    role: str
    compute: Loss

    def denominators(self, batch: Batch) -> Sums:
        return {"value": answer_mask(batch).sum()}

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        mask = answer_mask(batch)
        values = response_values(model, batch)
        total, count, metrics = self.compute(values, mask, Credit.of_columns(batch, mask.shape[1]))
        return {"value": total}, {"loss": (total, count)} | {k: (v, count) for k, v in metrics.items()}


def objectives(stage: Rl, roles: Sequence[str], kl_coef: float | None = None) -> list[Objective]:
    """The updates of the algorithm.

    Args:
        stage: the stage.
        roles: the policy, and the critic where the algorithm has one.
        kl_coef: coefficient of the KL penalty, as far as it stands in the loss; None: the recipe's.
    """
    algorithm, sampling = algorithm_of(stage), stage.rollout.sampling
    aggregation = Aggregation(stage.algorithm.aggregation, stage.answer_tokens)
    kl = KlLoss(stage.kl.coef if kl_coef is None else kl_coef, stage.kl.kind) if _kl_in_loss(stage) else None
    policy = PolicyUpdate(roles[0], algorithm.policy_loss, sampling.temperature, aggregation, kl, teaching_of(stage))
    updates: list[Objective] = [policy]
    if algorithm.value_loss is not None:
        updates.append(ValueUpdate(roles[1], algorithm.value_loss))
    return updates


def _kl_in_loss(stage: Rl) -> bool:
    return stage.needs_reference and stage.kl.placement == "loss"


def _full_batch(stage: Rl, limits: Limits) -> Batch:
    """Prompts and answers of the longest lengths, and what the objectives read of each answer's token."""
    rows, prompt = limits.rows(), max(1, limits.length - stage.answer_tokens)
    cuts = [min(prompt, len(row) - 1) for row in rows]
    prompts = [row[:cut] for row, cut in zip(rows, cuts, strict=True)]
    batch = sample_batch(prompts, [row[cut:] for row, cut in zip(rows, cuts, strict=True)], 0)
    width, names = int(batch["length"].max()), {field.name for field in fields(Credit)}
    read = names if _kl_in_loss(stage) else names - {"reference"}
    return batch | {name: torch.zeros(len(rows), width) for name in sorted(read)}


TASK = Task(objectives, _full_batch)
"""Reinforcement learning of a policy: the driver, what a rank holds, and its step."""
