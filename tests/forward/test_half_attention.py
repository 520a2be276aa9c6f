"""Gradients of attention in 16 bits, against the same in 64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.forward.half_attention import half_attention

Rows = tuple[Tensor, Tensor, Tensor]
"""Query, key, value."""


def inputs(new: int, whole: int, dtype: torch.dtype) -> Rows:
    generator = torch.Generator().manual_seed(new)
    query, key, value = (
        torch.randn(1, heads, tokens, 16, generator=generator).to(dtype).requires_grad_()
        for heads, tokens in ((6, new), (2, whole), (2, whole))
    )
    return query, key, value


def seen(query: Tensor, key: Tensor) -> Tensor:
    new, whole = query.shape[2], key.shape[2]
    return torch.ones(new, whole, dtype=torch.bool).tril(whole - new)


def exact(rows: Rows, outer: Tensor, scale: float | None = None) -> list[Tensor]:
    query, key, value = (tensor.detach().double().requires_grad_() for tensor in rows)
    out = F.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=True, attn_mask=seen(query, key))
    return [out.detach(), *torch.autograd.grad(out, (query, key, value), outer.double())]


def found(rows: Rows, outer: Tensor, scale: float | None = None) -> list[Tensor]:
    query, key, value = rows
    out = half_attention(query, key, value, scale, {"attn_mask": seen(query, key)})
    return [out.detach(), *torch.autograd.grad(out, rows, outer)]


@pytest.mark.parametrize(("new", "whole"), [(1, 1), (5, 5), (7, 20), (1, 300), (128, 128), (300, 300), (130, 301)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gradients_are_those_of_wide_attention(new: int, whole: int, dtype: torch.dtype) -> None:
    """In float64 to rounding: the formula is exact; in 16 bits within a few of their last places."""
    rows = inputs(new, whole, dtype)
    outer = torch.randn(1, 6, new, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2.5e-3, torch.float64: 1e-12}[dtype]
    for got, expected in zip(found(rows, outer), exact(rows, outer), strict=True):
        assert got.dtype == dtype
        assert (got.double() - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-3)


def test_a_scale_of_the_model_is_kept() -> None:
    rows, outer = inputs(9, 9, torch.bfloat16), torch.ones(1, 6, 9, 16, dtype=torch.bfloat16)
    for got, expected in zip(found(rows, outer, 1.0), exact(rows, outer, 1.0), strict=True):
        assert (got.double() - expected).abs().max() <= 3e-2 * expected.abs().max()


def test_values_may_be_of_another_size_than_keys() -> None:
    query, key, value = inputs(7, 20, torch.bfloat16)
    rows = query, key, value.detach()[..., :8].contiguous().requires_grad_()
    outer = torch.randn(1, 6, 7, 8, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    for got, wanted in zip(found(rows, outer), exact(rows, outer), strict=True):
        assert (got.double() - wanted).abs().max() < 3e-2 * wanted.abs().max()
