"""Causal attention over rows laid end to end: no padding, no token sees another row, beginnings are shared.

Rows that start alike (samples of one prompt, the two answers of a pair, chats under one system prompt) have equal
hidden states there under causal attention. So the shared tokens pass through the model once, and the rows that go on
from them attend to them. The layout is exact, gradients included; only rounding differs from padded rows.
"""

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface

from triptych.data.batches import common_prefix

PACKED = "triptych_packed"
"""The name under which transformers' models find it."""

_FLASH = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Layout:
    """Where the tokens of rows lie among the N that are computed."""

    ids: Tensor
    """[N] token ids: of each row, in the order of the rows' contents, those that the row before has not."""
    positions: Tensor
    """[N] position of each in its row."""
    places: Tensor
    """[all tokens of all rows, padding apart, rows in their given order] index among the N."""
    new: list[int]
    """Tokens that each row adds; rows that add none are left out of this and of `whole`."""
    whole: list[int]
    """Tokens of each of these rows, from its beginning."""
    keys: Tensor | None
    """[sum(whole)] index among the N of the tokens of these rows; None if nothing is shared: then it counts up."""

    @cached_property
    def query_borders(self) -> Tensor:
        """[rows + 1] where each row's queries begin, and where the last ends."""
        return _borders(self.new, self.ids.device)

    @cached_property
    def key_borders(self) -> Tensor:
        """[rows + 1] where each row's keys begin, and where the last ends."""
        return _borders(self.whole, self.ids.device)


def lay_out(ids: Tensor, mask: Tensor) -> Layout:
    """The layout of padded rows: ids and mask [B, T], padding on either side."""
    rows = [row[kept].tolist() for row, kept in zip(ids.cpu(), mask.cpu().bool(), strict=True)]
    tokens: list[int] = []
    positions: list[int] = []
    paths: list[list[int]] = [[]] * len(rows)
    new, whole, keys = [], [], []
    last: list[int] = []
    path: list[int] = []
    for number in sorted(range(len(rows)), key=rows.__getitem__):
        row = rows[number]
        shared = common_prefix(last, row)
        path = path[:shared] + list(range(len(tokens), len(tokens) + len(row) - shared))
        tokens += row[shared:]
        positions += range(shared, len(row))
        if len(row) > shared:
            new.append(len(row) - shared)
            whole.append(len(row))
            keys += path
        paths[number], last = path, row
    device = ids.device
    return Layout(
        ids=torch.tensor(tokens, device=device),
        positions=torch.tensor(positions, device=device),
        places=torch.tensor([place for path in paths for place in path], device=device),
        new=new,
        whole=whole,
        keys=torch.tensor(keys, device=device) if new != whole else None,
    )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Query [1, H, N, D], key and value [1, K, N, D] of a layout -> [1, N, H, D]; H is a multiple of K."""
    if layout.keys is not None:
        key, value = key.index_select(2, layout.keys), value.index_select(2, layout.keys)
    if query.is_cuda and query.dtype in _FLASH and not dropout:
        return _flash(query, key, value, layout, scaling, sliding_window), None
    rows = zip(query.split(layout.new, 2), key.split(layout.whole, 2), value.split(layout.whole, 2), strict=True)
    out = [
        F.scaled_dot_product_attention(
            q, k, v, dropout_p=dropout, scale=scaling, enable_gqa=True, **_causal(q, k, sliding_window)
        )
        for q, k, v in rows
    ]
    return torch.cat(out, dim=2).transpose(1, 2), None


def _causal(query: Tensor, key: Tensor, window: int | None) -> dict[str, Any]:
    """The queries are the last tokens of the keys."""
    new, whole = query.shape[2], key.shape[2]
    if new == whole and (window is None or whole <= window):
        return {"is_causal": True}
    steps = torch.arange(whole, device=query.device)
    behind = steps[whole - new :, None] - steps
    return {"attn_mask": (behind >= 0) if window is None else (behind >= 0) & (behind < window)}


def _flash(
    query: Tensor, key: Tensor, value: Tensor, layout: Layout, scaling: float | None, window: int | None
) -> Tensor:
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    out = varlen_attn(
        q,
        k,
        v,
        layout.query_borders,
        layout.key_borders,
        max(layout.new),
        max(layout.whole),
        scale=scaling,
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=True,
    )
    if not isinstance(out, Tensor):
        raise TypeError("varlen_attn gave more than the output")
    return out[None]


def _borders(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32, device=device)


AttentionInterface.register(PACKED, packed_attention)
