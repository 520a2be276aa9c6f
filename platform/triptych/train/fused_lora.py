"""A frozen linear layer and its LoRA in one step of autograd: two products into one output.

peft computes W x, B A x, its scaling and their sum one after another; here the second product is added to the first as
it is made, in both passes.
"""

from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn


def fuse_lora(layer: nn.Module) -> None:
    """Let a plain LoRA layer over a plain linear layer compute this way; any other stays as it is."""
    if type(layer) is Linear and type(layer.base_layer) is nn.Linear and not layer.lora_variant:
        layer.__dict__["forward"] = partial(_forward, layer)


def _forward(layer: Linear, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    role = layer.active_adapters[0]
    base = layer.base_layer
    if layer.disable_adapters or role not in layer.lora_A:
        return base(x, *args, **kwargs)
    dropout = layer.lora_dropout[role]
    # Dropout works on the adapter's input alone, and ZeRO-3 gathers weights only for the modules that own them.
    if (dropout.training and isinstance(dropout, nn.Dropout)) or hasattr(base.weight, "ds_id"):
        return type(layer).forward(layer, x, *args, **kwargs)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    a, b = layer.lora_A[role].weight, layer.lora_B[role].weight
    return _Fused.apply(x, base.weight, base.bias, a, b, layer.scaling[role])


class _Fused(torch.autograd.Function):
    """x [..., in] -> W x + bias + s B A x [..., out]; W [out, in] and the bias are frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, s: float) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1])
            down, up = a.to(x.dtype), (b * s).to(x.dtype)
            # One product that is counted, and never changed: that of the frozen layer, which selective checkpointing
            # may keep. The small ones go by `out`, which it does not see.
            inner = torch.mm(flat, down.T, out=flat.new_empty(len(flat), len(down)))
            added = torch.mm(inner, up.T, out=flat.new_empty(len(flat), len(up)))
            if bias is not None:
                added += bias.to(x.dtype)
            y = torch.addmm(added, flat, w.to(x.dtype).T)
        ctx.save_for_backward(flat, inner, w, down, up)
        ctx.shape, ctx.scaling, ctx.adapter_dtype = x.shape, s, a.dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        flat, inner, w, down, up = ctx.saved_tensors
        with torch.autocast(flat.device.type, enabled=False):
            g = outer[0].reshape(-1, outer[0].shape[-1])
            g_inner = g @ up
            g_a = (g_inner.T @ flat).to(ctx.adapter_dtype)
            g_b = (g.T @ inner).to(ctx.adapter_dtype) * ctx.scaling
            g_x = (g @ w.to(g.dtype)).addmm_(g_inner, down).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return g_x, None, None, g_a, g_b, None
