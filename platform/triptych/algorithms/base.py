"""The interface of an algorithm, and the records that cross it: N answers, R tokens in the longest of them."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Protocol

from torch import Tensor

from triptych.objectives.masking import LossParts


@dataclass(frozen=True)
class Scored:
    """Sampled answers of a step, and all that was computed of them before the update."""

    scores: Tensor
    """[N], of the rewards."""
    groups: Tensor
    """[N] integers, equal for the answers to one prompt."""
    mask: Tensor
    """[N, R] bool, true at answer tokens that the policy drew."""
    truncated: Tensor
    """[N] bool, true for answers that were cut by their length."""
    rollout: Tensor
    """[N, R] log-probabilities that the engines sampled with."""
    old: Tensor
    """[N, R] log-probabilities of the policy."""
    entropy: Tensor
    """[N, R] entropies of the policy, in nats."""
    reference: Tensor | None = None
    """[N, R] log-probabilities of the reference, where there is one."""
    values: Tensor | None = None
    """[N, R] the critic's values, where the algorithm has one."""
    teacher: Tensor | None = None
    """[N, R] log-probabilities of the teacher, where the algorithm has one."""

    @property
    def kl(self) -> float | None:
        """Mean KL to the reference, nats an answer; None without a reference."""
        return self._kl_to(self.reference)

    @property
    def teacher_kl(self) -> float | None:
        """Mean KL to the teacher, nats an answer; None without a teacher."""
        return self._kl_to(self.teacher)

    def _kl_to(self, other: Tensor | None) -> float | None:
        return None if other is None else ((self.old - other) * self.mask).sum(dim=1).mean().item()


@dataclass(frozen=True)
class Credit:
    """Token by token what the losses read: [N, R], or [B, R] of a micro-batch, whose columns have these names."""

    old_logprobs: Tensor
    """Log-probabilities of the policy before the update."""
    advantages: Tensor
    weights: Tensor
    """Importance weights, for what engines and learner compute differently."""
    old_values: Tensor | None = None
    """Values of the critic before the update."""
    returns: Tensor | None = None
    """Targets of the critic."""
    reference: Tensor | None = None
    """Log-probabilities of the reference, where the policy's loss has a KL penalty."""

    def columns(self) -> dict[str, Tensor]:
        """Column of a micro-batch -> values."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: values for name, values in named.items() if values is not None}

    @classmethod
    def of_columns(cls, columns: dict[str, Tensor], width: int) -> "Credit":
        """The first `width` tokens of a micro-batch; its other columns are left alone."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: columns[name][:, :width] for name in names if name in columns})


Loss = Callable[[Tensor, Tensor, Credit], LossParts]
"""Log-probabilities or values [B, R] with their gradient, mask [B, R], credit [B, R] -> the parts of a loss."""


class Algorithm(Protocol):
    """How credit is assigned, and which losses are minimised."""

    def credit(self, scored: Scored, kl_coef: float) -> Credit:
        """From the answers of a step; `kl_coef`: weight of the KL penalty at this step."""

    def policy_loss(self, logprobs: Tensor, mask: Tensor, credit: Credit) -> LossParts:
        """Of the policy's log-probabilities [B, R]; the KL penalty is not its business."""

    @property
    def value_loss(self) -> Loss | None:
        """Of the critic's values [B, R]; None for an algorithm without a critic."""
