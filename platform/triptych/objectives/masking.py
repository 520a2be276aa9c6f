"""Masking and widening, shared by every objective."""

import torch
from torch import Tensor

LossParts = tuple[Tensor, Tensor, dict[str, Tensor]]
"""Sum of a loss (differentiable), number of its terms, and detached sums of metrics over the same terms."""


def widen(x: Tensor) -> Tensor:
    """`x` in at least 32 bits of floating point: sums over tokens are never taken in bf16."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def keep(x: Tensor, mask: Tensor) -> Tensor:
    """`x` widened, with zeros where the mask is 0. Selects instead of multiplying: 0 * NaN is NaN."""
    x = widen(x)
    return torch.where(mask.bool(), x, torch.zeros((), dtype=x.dtype, device=x.device))


def count_of(mask: Tensor) -> Tensor:
    """Number of valid positions, as a 64-bit float: exact, and ready to be all-reduced with the sums."""
    return mask.bool().sum().to(torch.float64)
