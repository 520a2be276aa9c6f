"""Int8 base weights: close to the full ones, exact to their own, and no copy of them kept."""

from pathlib import Path

import torch
from torch import nn

from triptych.models.base import load_causal_lm
from triptych.models.quantize import Int8Linear, quantize, quantize_linears


def test_error_is_half_a_scale_at_most() -> None:
    weight = torch.randn(7, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 3, 7)[:, None]
    codes, scale = quantize(weight)
    assert codes.dtype == torch.int8
    assert ((codes * scale - weight).abs() <= 0.5001 * scale).all()
    assert quantize(torch.zeros(2, 3))[0].eq(0).all()


def test_output_and_gradient_are_those_of_the_widened_weights() -> None:
    linear = nn.Linear(5, 3).double()
    int8 = Int8Linear(linear)
    x = torch.randn(4, 5, dtype=torch.float64, requires_grad=True)
    wide = int8.weight.double() * int8.scale.double()
    expected = x @ wide.T + linear.bias
    torch.testing.assert_close(int8(x), expected)
    (found,) = torch.autograd.grad(int8(x).square().sum(), x)
    (gradient,) = torch.autograd.grad(expected.square().sum(), x)
    torch.testing.assert_close(found, gradient)


def test_only_int8_is_kept_for_the_backward_pass() -> None:
    kept: list[torch.dtype] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.dtype)
        return tensor

    layer = Int8Linear(nn.Linear(64, 64))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(2, 64, requires_grad=True))
    assert [dtype for dtype in kept if dtype != torch.float32] == [torch.int8]


def test_a_decoder(tiny_model_dir: Path) -> None:
    model = load_causal_lm(tiny_model_dir, torch.float32)
    ids = torch.arange(5, 25)[None]
    before = model(ids).logits
    quantize_linears(model.model)
    after = model(ids).logits
    assert not any(type(module) is nn.Linear for module in model.model.modules())
    assert type(model.lm_head) is nn.Linear
    assert 0 < (after - before).abs().max() < 0.1 * before.std() + 0.1 * before.abs().max()
