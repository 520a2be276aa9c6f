"""Causal attention of one row in 16 bits on a CPU, whose backward pass is matrix products.

torch's own CPU kernel is quick forward and slow backward in 16 bits (about 2.5 times what this takes): it widens every
block. Here the backward pass computes the probabilities again, a block of queries at a time, with products in 16 bits
and the softmax in float32 inside; its rounding errors are of the same size.
"""

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

QUERIES = 128
"""Queries of a block, so few that its scores stay in a core's cache."""


def half_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scaling: float | None,
    causal: dict[str, Any],
    hidden: Tensor | None = None,
) -> Tensor:
    """Query [1, H, n, D], key [1, K, m, D], value [1, K, m, E] -> [1, H, n, E]; the queries are the last n of m tokens.

    `causal` says that to torch's kernel. `hidden` [n, m]: what else a query does not see. Where it is of several rows,
    they have at most `QUERIES` keys.
    """
    out: Tensor = _HalfAttention.apply(query, key, value, scaling or query.shape[-1] ** -0.5, causal, hidden)
    return out


class _HalfAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float,
        causal: dict[str, Any],
        hidden: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value)
        ctx.scaling, ctx.hidden = scaling, hidden
        return F.scaled_dot_product_attention(query, key, value, scale=scaling, enable_gqa=True, **causal)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value = ctx.saved_tensors
        new, whole = query.shape[2], key.shape[2]
        groups = (key.shape[1], query.shape[1] // key.shape[1])  # query heads of one key head lie side by side
        q, g = (x[0].unflatten(0, groups) for x in (query * ctx.scaling, outer[0]))
        k, v = key[0], value[0]
        g_q = torch.empty_like(q, memory_format=torch.contiguous_format)
        g_k, g_v = (torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32)) for x in (k, v))
        for start in range(0, new, QUERIES):
            rows = slice(start, min(start + QUERIES, new))
            seen = whole - new + rows.stop
            hidden = _later(rows.stop - start) if ctx.hidden is None else ctx.hidden[rows, :seen]
            g_q[:, :, rows], block_k, block_v = _block(q[:, :, rows], g[:, :, rows], k[:, :seen], v[:, :seen], hidden)
            g_k[:, :seen] += block_k
            g_v[:, :seen] += block_v
        return (
            g_q.mul_(ctx.scaling).flatten(0, 1)[None],
            g_k.to(k.dtype)[None],
            g_v.to(v.dtype)[None],
            None,
            None,
            None,
        )


def _block(q: Tensor, g: Tensor, k: Tensor, v: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of scaled queries [K, G, b, D] and of the keys [K, m, D] and values [K, m, E] that they see.

    `g` [K, G, b, E]: gradient of the output. `hidden` [b, c]: what they do not see of the last c keys.
    """
    shape = q.shape
    q, g = (x.reshape(x.shape[0], -1, x.shape[3]) for x in (q, g))
    scores = q @ k.mT
    scores.view(*shape[:3], -1)[..., -hidden.shape[1] :].masked_fill_(hidden, -torch.inf)
    p = scores.softmax(dim=-1)
    g_scores = torch._softmax_backward_data(g @ v.mT, p, -1, p.dtype)
    return (g_scores @ k).view(shape), g_scores.mT @ q, p.mT @ g


@cache
def _later(size: int) -> Tensor:
    """Mask [size, size], true where the key comes after the query."""
    return torch.ones(size, size, dtype=torch.bool).triu(1)
