"""The fused layer is peft's, values and gradients, wherever it stands in for it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import Linear
from torch import Tensor

from tests.support.gradient_cases import make_model
from triptych.forward.activation_checkpointing import _selective
from triptych.forward.roles import RoleModel
from triptych.models.base import load_causal_lm
from triptych.recipe import Lora


def layers(model: RoleModel) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, Linear)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_values_and_gradients(tiny_model_dir: Path, dtype: torch.dtype, tolerance: float) -> None:
    model = make_model(tiny_model_dir, dtype, roles=("policy",))
    layer = layers(model)[0]
    x = torch.randn(2, 3, layer.in_features, dtype=dtype)
    outer = torch.randn(2, 3, layer.out_features, dtype=dtype)

    def both(forward: Any) -> list[Tensor]:
        inner = x.clone().requires_grad_()
        with model.use("policy"), model.autocast():
            y = forward(inner)
        parameters = [layer.lora_A["policy"].weight, layer.lora_B["policy"].weight]
        return [y.detach(), *torch.autograd.grad(y, [inner, *parameters], outer)]

    fused, stock = both(layer), both(lambda x: Linear.forward(layer, x))
    for found, expected in zip(fused, stock, strict=True):
        assert found.dtype == expected.dtype
        assert (found - expected).abs().max() <= tolerance * expected.abs().max()


def test_selective_checkpointing_keeps_every_second_product_of_the_frozen_layers(tiny_model_dir: Path) -> None:
    model = make_model(tiny_model_dir, torch.float32, roles=("policy",))
    forward: Any = _selective()[0]
    with model.use("policy"), forward:
        for layer in layers(model)[:7]:
            layer(torch.randn(3, layer.in_features))
    made = [out for outs in forward.storage.values() for out in outs.values()]
    kept = [tuple(out.val.shape) for out in made if hasattr(out, "val")]  # the others are a mark: to be made again
    assert kept == [(3, layer.out_features) for layer in layers(model)[:7:2]]


def test_the_base_role_has_no_adapter(tiny_model_dir: Path) -> None:
    model = make_model(tiny_model_dir, torch.float32, roles=("policy",))
    layer = layers(model)[0]
    x = torch.randn(4, layer.in_features)
    with model.use("base"):
        assert torch.equal(layer(x), layer.base_layer(x))
    with model.use("policy"):
        assert not torch.equal(layer(x), layer.base_layer(x))


def test_dropout_takes_the_long_way(tiny_model_dir: Path) -> None:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    model.add("policy", Lora(r=4, alpha=8, dropout=0.5), trainable=True)
    layer = layers(model)[0]
    torch.nn.init.normal_(layer.lora_B["policy"].weight)
    x = torch.randn(4, layer.in_features)
    with model.use("policy"):
        model.train(True)
        assert not torch.equal(layer(x), layer(x))
        model.train(False)
        assert torch.equal(layer(x), layer(x))
