"""Rotary positions on CPU for queries and keys with an axis of heads.

vLLM's CPU kernel reads the last axis as all heads of a token: of [tokens, heads, size] it turns the first head of each
token, or none, as LFM2's attention has it.
"""

from typing import Any

from torch import Tensor
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

_stock = RotaryEmbedding.forward_cpu


def forward_cpu(self: Any, positions: Tensor, query: Tensor, key: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """`RotaryEmbedding.forward_cpu`, for [tokens, heads, size] as for [tokens, heads * size]."""
    if query.dim() != 3:
        return _stock(self, positions, query, key)
    turned, turned_key = _stock(self, positions, query.flatten(1), None if key is None else key.flatten(1))
    return turned.view(query.shape), None if key is None or turned_key is None else turned_key.view(key.shape)


def install() -> None:
    """Put `forward_cpu` in the place of vLLM's; may be called any number of times."""
    RotaryEmbedding.forward_cpu = forward_cpu
