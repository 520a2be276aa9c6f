"""A frozen linear layer and its LoRAs in one step of autograd: all products into one output.

peft computes W x, B A x, its scaling and their sum one after another; here the products of A and B are there first, and
the frozen layer's is added to them as it is made, in both passes. Several roles may compute at once, each its own rows
of x: the frozen layer reads its weight once for all of them, and no row meets another role's adapter.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn

RowSlices = Mapping[str, slice]
"""Role -> its rows of a pass, in order; none: all are the active role's."""


def fuse_lora(layer: nn.Module, rows: RowSlices) -> None:
    """Let a plain LoRA layer over a plain linear layer compute this way; any other stays as it is.

    `rows` is looked at in every pass.
    """
    if type(layer) is Linear and type(layer.base_layer) is nn.Linear and not layer.lora_variant:
        layer.__dict__["forward"] = partial(_forward, layer, rows)


def is_fused(layer: nn.Module) -> bool:
    """True if several roles can compute with the layer at once."""
    return type(layer) is Linear and "forward" in layer.__dict__


def _forward(layer: Linear, rows: RowSlices, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    base = layer.base_layer
    if rows:
        parts = [(role, own.start, own.stop) for role, own in rows.items() if role in layer.lora_A]
    else:
        active = [] if layer.disable_adapters else layer.active_adapters[:1]  # none where the last one was removed
        parts = [(role, 0, x.shape[:-1].numel()) for role in active if role in layer.lora_A]
    if not parts:
        return base(x, *args, **kwargs)
    # Dropout works on the adapter's input alone, and ZeRO-3 gathers weights only for the modules that own them.
    dropout = layer.lora_dropout[parts[0][0]]
    if not rows and ((dropout.training and isinstance(dropout, nn.Dropout)) or hasattr(base.weight, "ds_id")):
        return type(layer).forward(layer, x, *args, **kwargs)
    device = x.device.type
    if torch.is_autocast_enabled(device):
        x = x.to(torch.get_autocast_dtype(device))
    scaled = [(start, stop, layer.scaling[role]) for role, start, stop in parts]
    weights = [side[role].weight for role, _, _ in parts for side in (layer.lora_A, layer.lora_B)]
    return _Fused.apply(x, base.weight, base.bias, scaled, *weights)


class _Fused(torch.autograd.Function):
    """x [..., in] -> W x + bias + s B A x [..., out], row by row; W [out, in] and the bias are frozen.

    `parts`: first row, row behind the last, and s of each adapter, whose A [r, in] and B [out, r] follow in turn.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, parts: list[tuple[int, int, float]], *ab: Tensor
    ) -> Tensor:
        saved: list[Tensor] = []
        with torch.autocast(x.device.type, enabled=False):
            flat = x.reshape(-1, x.shape[-1])
            whole = sum(stop - start for start, stop, _ in parts) == len(flat)
            added = (flat.new_empty if whole else flat.new_zeros)(len(flat), len(w))
            for (start, stop, s), a, b in zip(parts, ab[::2], ab[1::2], strict=True):
                down, up = a.to(x.dtype), (b * s).to(x.dtype)
                # One product that is counted, and never changed: that of the frozen layer, which selective
                # checkpointing may keep. The small ones go by `out`, which it does not see.
                inner = torch.mm(flat[start:stop], down.T, out=flat.new_empty(stop - start, len(down)))
                torch.mm(inner, up.T, out=added[start:stop])
                saved += [inner, down, up]
            if bias is not None:
                added += bias.to(x.dtype)
            y = torch.addmm(added, flat, w.to(x.dtype).T)
        ctx.save_for_backward(flat, w, *saved)
        ctx.shape, ctx.parts, ctx.adapter_dtype = x.shape, parts, ab[0].dtype
        return y.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        flat, w, *saved = ctx.saved_tensors
        gradients: list[Tensor] = []
        with torch.autocast(flat.device.type, enabled=False):
            g = outer[0].reshape(-1, outer[0].shape[-1])
            g_x = g @ w.to(g.dtype) if ctx.needs_input_grad[0] else None
            for (start, stop, s), inner, down, up in zip(ctx.parts, saved[::3], saved[1::3], saved[2::3], strict=True):
                own = g[start:stop]
                g_inner = own @ up
                gradients.append((g_inner.T @ flat[start:stop]).to(ctx.adapter_dtype))
                gradients.append((own.T @ inner).to(ctx.adapter_dtype) * s)
                if g_x is not None:
                    g_x[start:stop].addmm_(g_inner, down)
        return None if g_x is None else g_x.view(ctx.shape), None, None, None, *gradients
