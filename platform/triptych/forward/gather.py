"""`index_select` in half precision whose backward pass accumulates in float32.

A beginning that rows share gets the gradient of each of them. Added one by one in 16 bits the sum is off by 1% for 64
rows and by 2% for 256; rounded once, at the end, by the 0.2% of any number in bfloat16.
"""

from typing import Any

import torch
from torch import Tensor

HALF = (torch.bfloat16, torch.float16)
"""Dtypes that autocast computes in, beside float32 weights."""


def gather(x: Tensor, dim: int, index: Tensor) -> Tensor:
    """`x.index_select(dim, index)`, whose gradient is exact up to one rounding."""
    if x.dtype not in HALF:
        return x.index_select(dim, index)
    found: Tensor = _Gather.apply(x, dim, index)
    return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, dim: int, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape, ctx.dim = x.shape, dim
        return x.index_select(dim, index)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors
        total = outer[0].new_zeros(ctx.shape, dtype=torch.float32).index_add_(ctx.dim, index, outer[0].float())
        return total.to(outer[0].dtype), None, None
