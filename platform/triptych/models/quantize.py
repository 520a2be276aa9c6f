"""Frozen linear layers kept in 8 bits: one scale an output row, weights widened when they are used.

Half of bfloat16's memory, on any device. Dettmers et al. 2022 (arXiv 2208.07339) without the outlier split, which only
quantised activations need.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.errors import UserError
from triptych.models.blocks import expert_weights

LARGEST = 127


class Int8Linear(nn.Linear):
    """W x + b with W [out, in] as int8 and a scale [out, 1]; W is never trained."""

    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantize(linear.weight.detach())
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        self.register_parameter("bias", linear.bias)

    def forward(self, input: Tensor) -> Tensor:
        if torch.is_autocast_enabled(input.device.type):
            input = input.to(torch.get_autocast_dtype(input.device.type))
        product: Tensor = _Product.apply(input, self.weight, self.scale)
        bias: Tensor | None = self.bias
        return product if bias is None else product + bias.to(product.dtype)


class _Product(torch.autograd.Function):
    """x W^T, the widened weights kept for neither pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        return F.linear(x, _widened(weight, scale, x.dtype))

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        return outer[0] @ _widened(weight, scale, outer[0].dtype), None, None


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[out, in] -> int8 [out, in] and float32 scales [out, 1]; off by half a scale at most."""
    wide = weight.float()
    scale = wide.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / LARGEST
    return (wide / scale).round().to(torch.int8), scale


def quantize_linears(model: nn.Module) -> None:
    """Replace every linear layer of a decoder, in place.

    Raises:
        UserError: a mixture of experts, most of whose weights are not in linear layers.
    """
    if experts := expert_weights(model):
        raise UserError(
            f"model.quantization: int8 rounds linear layers, and {next(iter(experts))} holds a matrix for each expert; "
            "allowed here: no quantization"
        )
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))


def rounded_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights [out, in] that a model keeps in 8 bits, as it computes with them, in float32."""
    return {
        f"{name.replace('.base_layer', '')}.weight": _widened(module.weight.detach(), module.scale, torch.float32)
        for name, module in model.named_modules()
        if isinstance(module, Int8Linear)
    }


def _widened(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) * scale.to(dtype)
