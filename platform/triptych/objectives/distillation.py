"""Distillation: divergences over the whole vocabulary between a teacher and a student, token by token.

P is the teacher's distribution of a token, Q the student's, after the same prefix and at the same temperature. The
names are GKD's (Agarwal et al. 2024, arXiv 2306.13649, section 3): forward KL(P || Q), reverse KL(Q || P), and the
generalised Jensen-Shannon divergence of its equation 1 with M = beta P + (1 - beta) Q,

    JSD(beta) = beta KL(P || M) + (1 - beta) KL(Q || M).

So a beta near 0 gives gradients like those of the forward KL, and one near 1 like those of the reverse KL. It is the
beta of TRL's `generalized_jsd_loss`, which takes 0 and 1 for the two KLs themselves, although the formula is 0 there:
here these have names, and beta lies between. The reverse KL is MiniLLM's (Gu et al. 2024, arXiv 2306.08543), but of one
token at a time: none of these has a gradient through what the student samples, as in GKD. Nothing is multiplied by the
square of the temperature.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.chunked import LogitsOf, measured
from triptych.objectives.language import log_softmax
from triptych.objectives.masking import LossParts, keep

_LEAST = -1e30
"""A log-probability that is 0 as a probability and finite in fp32."""


@dataclass(frozen=True)
class Predictions:
    """Hidden states [n, d] that the tokens of a batch are drawn from, and the head that makes logits of them."""

    hidden: Tensor
    logits_of: LogitsOf
    chunk: int | None = None
    """Tokens whose logits may exist at once; None: all of them."""
    head_trains: bool = False


@dataclass(frozen=True)
class Divergence:
    """A divergence between the teacher's and the student's distribution of a token, in nats."""

    kind: Literal["forward_kl", "reverse_kl", "jsd"]
    beta: float = 0.5
    """Share of the teacher in the mixture of `jsd`."""
    temperature: float = 1.0
    """Divides the logits of both."""

    def of(self, student: Tensor, teacher: Tensor) -> Tensor:
        """[n] of log-probabilities [n, V]."""
        if self.kind == "forward_kl":
            return _kl(teacher, student)
        if self.kind == "reverse_kl":
            return _kl(student, teacher)
        mixture = self._mixture(student, teacher)
        return self.beta * _kl(teacher, mixture) + (1 - self.beta) * _kl(student, mixture)

    def slope(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Derivative [n, V] of `of` to the student's logits, those before the temperature.

        To the logits z of Q: Q - P for the forward KL; Q (g - E_Q g) for the others, where g is log Q - log P, and
        (1 - beta)(log Q - log M) for the generalised Jensen-Shannon divergence.
        """
        if self.kind == "forward_kl":
            return (student.exp() - teacher.exp()) / self.temperature
        share, other = (1.0, teacher) if self.kind == "reverse_kl" else (1 - self.beta, self._mixture(student, teacher))
        centred = _gap(student, other) - _kl(student, other)[:, None]
        return student.exp() * centred * (share / self.temperature)

    def _mixture(self, student: Tensor, teacher: Tensor) -> Tensor:
        teacher, student = teacher.clamp(min=_LEAST), student.clamp(min=_LEAST)  # two -inf give it NaN as gradient
        return torch.logaddexp(teacher + math.log(self.beta), student + math.log1p(-self.beta))


def distillation_loss(
    student: Predictions, teacher: Predictions, divergence: Divergence, weights: Tensor | None = None
) -> LossParts:
    """Divergence of the student from the teacher over n tokens; only the student gets a gradient.

    Args:
        student: of every token.
        teacher: of the same tokens, by a model of the same vocabulary.
        divergence: what is minimised.
        weights: [n], each token's share in the sum; None: 1.

    Returns:
        Weighted sum, number of tokens, and the plain sum as `divergence`. The logits of the student's `chunk` tokens
        exist at once, of each of the two.
    """
    measure = _FromTeacher(teacher, divergence)
    values = measured(measure, student.logits_of, student.hidden, student.chunk, head_trains=student.head_trains)
    total = values if weights is None else values * weights.to(values.dtype)
    count = torch.tensor(len(values), dtype=torch.float64, device=values.device)
    return total.sum(), count, {"divergence": values.detach().sum()}


@dataclass(frozen=True)
class _FromTeacher:
    """The divergence of each token from a teacher, whose logits are computed chunk by chunk too."""

    teacher: Predictions
    divergence: Divergence

    def value(self, logits: Tensor, rows: slice) -> Tensor:
        return self.divergence.of(log_softmax(logits, self.divergence.temperature), self._teacher(rows))

    def value_and_slope(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        student, teacher = log_softmax(logits, self.divergence.temperature), self._teacher(rows)
        return self.divergence.of(student, teacher), self.divergence.slope(student, teacher)

    @torch.no_grad()
    def _teacher(self, rows: slice) -> Tensor:
        return log_softmax(self.teacher.logits_of(self.teacher.hidden[rows]), self.divergence.temperature)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) [n] of log-probabilities [n, V]."""
    return (p.exp() * _gap(p, q)).sum(dim=-1)


def _gap(p: Tensor, q: Tensor) -> Tensor:
    """Difference p - q of log-probabilities; 0 where p has none of its mass, and q may have none either."""
    return keep(p - q, p > -math.inf)
