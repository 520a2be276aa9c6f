"""Numbers of tokens from logits of which a chunk exists at once: their hidden states go in, gradients come back."""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

LogitsOf = Callable[[Tensor], Tensor]
"""Hidden states [n, d] -> logits [n, vocabulary]."""


class TokenMeasure(Protocol):
    """A number of each token that follows from its own logits and from no other token's."""

    def value(self, logits: Tensor, rows: slice) -> Tensor:
        """[m] from the logits [m, V] of the tokens `rows`; autograd goes through it."""

    def value_and_slope(self, logits: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """`value`, and its derivative [m, V] to the logits, which are detached."""


def measured(
    measure: TokenMeasure, logits_of: LogitsOf, hidden: Tensor, chunk: int | None, *, head_trains: bool
) -> Tensor:
    """The measure [n] of hidden states [n, d], with the logits of at most `chunk` tokens at once (None: of all).

    With a frozen head nothing is computed twice: the gradient of a token's number to its hidden state needs no other
    token, and is taken while its logits are there. A head that trains has its logits computed again.
    """
    size = chunk or max(len(hidden), 1)
    if not torch.is_grad_enabled() or not head_trains:
        values: Tensor = _FrozenHead.apply(hidden, logits_of, measure, size)
        return values

    def compute(hidden: Tensor, rows: slice) -> Tensor:
        return measure.value(logits_of(hidden), rows)

    if chunk is None:
        return compute(hidden, slice(0, len(hidden)))
    return torch.cat([checkpoint(compute, hidden[rows], rows, use_reentrant=False) for rows in _parts(hidden, size)])


def _parts(hidden: Tensor, size: int) -> list[slice]:
    """Rows of each chunk; one empty chunk where there is no token."""
    return [slice(start, start + size) for start in range(0, max(len(hidden), 1), size)]


class _FrozenHead(torch.autograd.Function):
    """A measure [n], and its gradients [n, d] to the hidden states, chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, logits_of: LogitsOf, measure: TokenMeasure, size: int) -> Tensor:
        differentiate = ctx.needs_input_grad[0]
        values: list[Tensor] = []
        gradients: list[Tensor] = []
        for rows in _parts(hidden, size):
            with torch.set_grad_enabled(differentiate):
                h = hidden[rows].detach().requires_grad_(differentiate)
                logits = logits_of(h)
            if not differentiate:
                values.append(measure.value(logits, rows))
                continue
            value, slope = measure.value_and_slope(logits.detach(), rows)
            values.append(value)
            gradients += torch.autograd.grad(logits, h, slope.to(logits.dtype))
        if differentiate:
            ctx.save_for_backward(torch.cat(gradients))
        return torch.cat(values)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (outer[0][:, None] * gradient).to(gradient.dtype), None, None, None
