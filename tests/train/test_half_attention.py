"""Gradients of attention in 16 bits, against the same in 64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.train.attention import _causal
from triptych.train.half_attention import half_attention


def inputs(new: int, whole: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(new)
    shapes = [(1, 6, new, 16), (1, 2, whole, 16), (1, 2, whole, 16)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def exact(tensors: list[Tensor], outer: Tensor) -> list[Tensor]:
    wide = [tensor.double().requires_grad_() for tensor in tensors]
    out = F.scaled_dot_product_attention(*wide, enable_gqa=True, **_causal(wide[0], wide[1], None))
    return [out.detach(), *torch.autograd.grad(out, wide, outer.double())]


@pytest.mark.parametrize(("new", "whole"), [(1, 1), (5, 5), (7, 20), (1, 300), (128, 128), (300, 300), (130, 301)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_gradients_are_those_of_wide_attention(new: int, whole: int, dtype: torch.dtype) -> None:
    """In float64 to rounding: the formula is exact; in 16 bits within a few of their last places."""
    tensors = inputs(new, whole, dtype)
    outer = torch.randn(1, 6, new, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    for tensor in tensors:
        tensor.requires_grad_()
    out = half_attention(*tensors, None, _causal(tensors[0], tensors[1], None))
    found = [out.detach(), *torch.autograd.grad(out, tensors, outer)]
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 2.5e-3, torch.float64: 1e-12}[dtype]
    for got, expected in zip(found, exact([t.detach() for t in tensors], outer), strict=True):
        assert got.dtype == dtype
        assert (got.double() - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-3)


def test_a_scale_of_the_model_is_kept() -> None:
    tensors = [tensor.requires_grad_() for tensor in inputs(9, 9, torch.bfloat16)]
    outer = torch.ones(1, 6, 9, 16, dtype=torch.bfloat16)
    plain = torch.autograd.grad(half_attention(*tensors, 1.0, {"is_causal": True}), tensors, outer)
    wide = [tensor.detach().double().requires_grad_() for tensor in tensors]
    out = F.scaled_dot_product_attention(*wide, is_causal=True, scale=1.0, enable_gqa=True)
    for got, expected in zip(plain, torch.autograd.grad(out, wide, outer.double()), strict=True):
        assert (got.double() - expected).abs().max() <= 3e-2 * expected.abs().max()
