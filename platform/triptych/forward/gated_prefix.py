"""Attention to a prefix whose keys and values each token scales by its own gate, for any kernel of attention.

With keys [k, 0] and values [v, 0] of the row, [0, k] and [0, v] of the prefix, and queries [q, g q], one softmax over
both halves gives q k for the row's keys and g q k for the prefix's; of what comes out, [o, p], the answer is o + g p.
Heads are twice as wide for it.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.methods.base import Prefix

Attention = Callable[..., tuple[Tensor, None]]


def with_gate(attention: Attention, argument: str, field: str) -> Attention:
    """An attention that may be given `prefix_gate`, [B, T, 1]; the prefix is `field` of what it is given as `argument`.

    Query [B, H, T, D], key and value [B, K, T, D] -> [B, T, H, D].
    """

    @wraps(attention)
    def gated(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        prefix_gate: Tensor | None = None,
        scaling: float | None = None,
        **settings: Any,
    ) -> tuple[Tensor, None]:
        if prefix_gate is None or (before := settings.get(argument)) is None:
            return attention(module, query, key, value, attention_mask, scaling=scaling, **settings)
        size, gate = query.shape[-1], prefix_gate.to(query.dtype)
        settings[argument] = replace(before, **{field: partial(_second_half, getattr(before, field))})
        out, _ = attention(
            module,
            torch.cat([query, gate[:, None] * query], dim=-1),
            F.pad(key, (0, size)),
            F.pad(value, (0, value.shape[-1])),
            attention_mask,
            scaling=scaling or size**-0.5,
            **settings,
        )
        own, of_prefix = out.chunk(2, dim=-1)
        return own + gate[..., None].to(out.dtype) * of_prefix, None

    return gated


def _second_half(give: Prefix, module: nn.Module, given: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """A prefix's keys and values, in the second half of heads that are twice as wide."""
    key, value = give(module, given, rows)
    return F.pad(key, (key.shape[-1], 0)), F.pad(value, (value.shape[-1], 0))
