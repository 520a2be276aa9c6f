"""Packed causal attention: rows laid end to end without padding, with the prefixes that they share computed once.

Rows that start alike (samples of one prompt, the two answers of a pair, chats under one system prompt) have equal
hidden states there under causal attention. So the shared tokens pass through the model once, and the rows that go on
from them attend to them. The layout is exact, gradients included; only rounding differs from padded rows.

A prefix of trained keys and values stands before every row of either kind.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from triptych.data.batches import common_prefix
from triptych.errors import UserError
from triptych.forward.gated_prefix import with_gate
from triptych.forward.gather import HALF, gather
from triptych.forward.half_attention import QUERIES, half_attention
from triptych.forward.scored_attention import Scoring, scored_attention
from triptych.methods.base import Prefix

PACKED = "triptych_packed"
"""The name under which transformers' models find the attention of a layout."""

PADDED = "triptych_padded"
"""The name of the attention of padded rows."""

FLASH_HEAD = 256
"""Size of the largest heads that a GPU's kernel of rows of different lengths takes."""

COMPUTED = ("dropout", "is_causal", "s_aux", "scaling", "sliding_window", "softcap")
"""Arguments of transformers' attention functions that are computed, packed and padded."""

_WITHOUT_EFFECT = frozenset(
    {"cache_position", "output_attentions", "output_hidden_states", "output_router_logits", "position_embeddings"}
    | {"position_ids", "return_dict", "use_cache"}
)
"""Arguments that decoders hand down to attention, and that change nothing of what it computes."""


@dataclass(frozen=True)
class Layout:
    """The N tokens of a packed pass, and the place of every row's tokens among them."""

    ids: Tensor
    """[N] token ids: rows sorted by their tokens, each without the beginning that it shares with the row before.

    Virtual tokens, which stand before every row, are the first, as negative numbers."""
    positions: Tensor
    """[N] position of each in its row, the prefix counted."""
    places: Tensor
    """[all tokens of all rows, padding apart, rows in their given order] index among the N."""
    new: list[int]
    """Tokens that each row adds; rows that add none are left out of this and of `whole`."""
    whole: list[int]
    """Keys of each of these rows: those of its prefix, then those of its tokens, from its beginning."""
    keys: Tensor | None
    """[sum(whole)] index of these keys among those of the prefix, once for each row, and of the N tokens.

    None if there is no prefix and nothing is shared: then it counts up."""
    prefix: Prefix | None = None
    """Function that gives the keys and values before every row."""
    apart: frozenset[int] = frozenset()
    """Numbers of rows that no product may take together with the row before: another role's."""

    @cached_property
    def query_borders(self) -> Tensor:
        """[rows + 1] where each row's queries begin, and where the last ends."""
        return _borders(self.new, self.ids.device)

    @cached_property
    def key_borders(self) -> Tensor:
        """[rows + 1] where each row's keys begin, and where the last ends."""
        return _borders(self.whole, self.ids.device)


def lay_out(
    ids: Tensor, mask: Tensor, *, virtual: int = 0, prefix: Prefix | None = None, prefix_length: int = 0
) -> Layout:
    """The layout of padded rows: ids and mask [B, T], padding on either side.

    Args:
        virtual: virtual tokens (embeddings of a prompt) before every row.
        prefix: keys and values before these; `prefix_length` of them.
    """
    before = list(range(-virtual, 0))
    rows = [before + row[kept].tolist() for row, kept in zip(ids.cpu(), mask.cpu().bool(), strict=True)]
    tokens: list[int] = []
    positions: list[int] = []
    paths: list[list[int]] = [[]] * len(rows)
    new: list[int] = []
    whole: list[int] = []
    keys: list[int] = []
    last: list[int] = []
    path: list[int] = []
    # Sorted by their tokens, rows that begin alike stand next to each other, and each shares its longest beginning
    # with the row before it. So one comparison with that row finds all that is shared, as in a walk over a trie, and
    # `path`, the places of the row before, holds those of the shared tokens. Unsorted, a row would have to be compared
    # with all others, and would share less. `places` brings the states back into the given order.
    for number in sorted(range(len(rows)), key=rows.__getitem__):
        row = rows[number]
        shared = common_prefix(last, row)
        path = path[:shared] + list(range(len(tokens), len(tokens) + len(row) - shared))
        tokens += row[shared:]
        positions += range(prefix_length + shared, prefix_length + len(row))
        if len(row) > shared:
            new.append(len(row) - shared)
            whole.append(prefix_length + len(row))
            keys += range(-prefix_length * len(new), -prefix_length * (len(new) - 1))
            keys += path
        paths[number], last = path, row
    device = ids.device
    return Layout(
        ids=torch.tensor(tokens, device=device),
        positions=torch.tensor(positions, device=device),
        places=torch.tensor([place for path in paths for place in path[virtual:]], device=device),
        new=new,
        whole=whole,
        keys=torch.tensor(keys, device=device) + prefix_length * len(new) if new != whole else None,
        prefix=prefix,
    )


def joined(layouts: Sequence[Layout]) -> Layout:
    """Layouts without a prefix end to end; they share nothing with each other."""
    starts = list(itertools.accumulate((len(layout.ids) for layout in layouts), initial=0))
    keys = None
    if any(layout.keys is not None for layout in layouts):
        own = [torch.arange(len(x.ids), device=x.ids.device) if x.keys is None else x.keys for x in layouts]
        keys = torch.cat([start + found for start, found in zip(starts, own, strict=False)])
    return Layout(
        ids=torch.cat([layout.ids for layout in layouts]),
        positions=torch.cat([layout.positions for layout in layouts]),
        places=torch.cat([start + layout.places for start, layout in zip(starts, layouts, strict=False)]),
        new=[count for layout in layouts for count in layout.new],
        whole=[count for layout in layouts for count in layout.whole],
        keys=keys,
        apart=frozenset(itertools.accumulate(len(layout.new) for layout in layouts)),
    )


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Query [1, H, N, D], key [1, K, N, D], value [1, K, N, E] of a layout -> [1, N, H, E]; H is a multiple of K.

    Raises:
        UserError: an argument that changes attention in a way that is not computed here, a mask among them.
    """
    check_arguments(module, others | {"attention_mask": attention_mask})
    if layout is None:
        raise UserError(f"model.base: {type(module).__name__} does not hand to attention what its decoder is given")
    scoring = Scoring(softcap, s_aux)
    if torch.is_autocast_enabled(device := query.device.type):  # rotation may have widened them
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    if layout.prefix is not None:
        before = layout.prefix(module, key, len(layout.new))
        key, value = (
            torch.cat([own.transpose(0, 1).flatten(1, 2)[None], given], dim=2)
            for own, given in zip(before, (key, value), strict=True)
        )
    if layout.keys is not None:
        key, value = gather(key, 2, layout.keys), gather(value, 2, layout.keys)
    if _flashes(query, value, scoring) and not dropout:
        return _flash(query, key, value, layout, scaling, sliding_window), None
    most = QUERIES if query.dtype in HALF and scoring.plain else 0
    spans = _spans(tuple(layout.new), tuple(layout.whole), layout.apart, most, sliding_window, query.device)
    news, wholes = [span.new for span in spans], [span.whole for span in spans]
    parts = zip(query.split(news, 2), key.split(wholes, 2), value.split(wholes, 2), spans, strict=True)
    out = [_attend(q, k, v, span, scaling, dropout, scoring) for q, k, v, span in parts]
    return torch.cat(out, dim=2).transpose(1, 2).contiguous(), None  # some families view it as it is


def on_gpu(query: Tensor) -> bool:
    """True if a GPU's kernels compute it; a plan's trace replaces this for its fake tensors."""
    return query.is_cuda


def _flashes(query: Tensor, value: Tensor, scoring: Scoring) -> bool:
    """True if a GPU's kernel of rows of different lengths takes these heads."""
    fits = query.shape[-1] == value.shape[-1] <= FLASH_HEAD
    return on_gpu(query) and query.dtype in HALF and scoring.plain and fits


def check_arguments(module: nn.Module, given: Mapping[str, Any]) -> None:
    """UserError where a model gives its attention an argument that would be left out of what is computed."""
    for name, value in given.items():
        if value is None or (value is False and name != "is_causal") or name in _WITHOUT_EFFECT:
            continue
        if name != "is_causal" or value is False:
            raise UserError(
                f"model.base: {type(module).__name__} gives its attention `{name}`, which is not computed here; "
                f"allowed: models whose attention takes no more than {', '.join(COMPUTED)}"
            )


@dataclass(frozen=True)
class _Span:
    """Rows side by side that attention takes at once."""

    new: int
    whole: int
    """Queries and keys of all of them."""
    causal: dict[str, Any]
    """Keyword arguments of torch's kernel that say which keys a query sees."""
    hidden: Tensor | None
    """[new, whole] mask of the keys that a query does not see.

    None: one row, whose queries are its last tokens, without a window."""


def _attend(
    query: Tensor, key: Tensor, value: Tensor, span: _Span, scaling: float | None, dropout: float, scoring: Scoring
) -> Tensor:
    if not scoring.plain:
        seen = span.causal.get("attn_mask")
        seen = _seen(span.new, span.whole, None, query.device) if seen is None else seen
        return scored_attention(query, key, value, seen, scaling, dropout, scoring)
    if query.dtype in HALF and not on_gpu(query) and not dropout:
        return half_attention(query, key, value, scaling, span.causal, span.hidden)
    if query.dtype == torch.float32 and on_gpu(query):  # where heads share keys no kernel there is fused
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    shared = key.shape[1] < query.shape[1]
    return F.scaled_dot_product_attention(
        query, key, value, dropout_p=dropout, scale=scaling, enable_gqa=shared, **span.causal
    )


@lru_cache(maxsize=8)
def _spans(
    new: tuple[int, ...],
    whole: tuple[int, ...],
    apart: frozenset[int],
    most: int,
    window: int | None,
    device: torch.device,
) -> list[_Span]:
    """Rows by their queries and keys, as many at once as have `most` keys: a call costs more than masked keys.

    In 32 bits torch's kernel would round differently with a mask than without (1e-5 in place of 1e-6), and keep the
    mask for each layer. Kept, since every layer asks for the same.
    """
    spans: list[list[tuple[int, int]]] = []
    keys = 0
    for number, row in enumerate(zip(new, whole, strict=True)):
        if spans and keys + row[1] <= most and number not in apart:
            spans[-1].append(row)
            keys += row[1]
        else:
            spans.append([row])
            keys = row[1]
    return [_span(rows, window, device) for rows in spans]


def _span(rows: list[tuple[int, int]], window: int | None, device: torch.device) -> _Span:
    new, whole = (sum(lengths) for lengths in zip(*rows, strict=True))
    windowed = window is not None and any(keys > window for _, keys in rows)
    if len(rows) == 1 and new == whole and not windowed:
        return _Span(new, whole, {"is_causal": True}, None)
    seen = torch.block_diag(*(_seen(*row, window, device) for row in rows))
    return _Span(new, whole, {"attn_mask": seen}, seen.logical_not() if len(rows) > 1 or windowed else None)


def _seen(new: int, whole: int, window: int | None, device: torch.device) -> Tensor:
    """Mask [new, whole], true where a query (of the last tokens) sees a key."""
    steps = torch.arange(whole, device=device)
    behind = steps[whole - new :, None] - steps
    return (behind >= 0) if window is None else (behind >= 0) & (behind < window)


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


@dataclass(frozen=True)
class RowPrefix:
    """Keys and values before padded rows inside attention."""

    give: Prefix
    length: int
    positions: Tensor
    """[B, T] position of each token in its row, after the prefix."""


def padded_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_prefix: RowPrefix | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' sdpa, behind a prefix: query [B, H, T, D], key and value [B, K, T, D] -> [B, T, H, D].

    The mask [B, 1, T, T] is true where a token sees another; None: causal. Scores are capped, and sinks take their
    share, where the model says so.

    Raises:
        UserError: an argument that changes attention in another way.
    """
    scoring = Scoring(softcap, s_aux)
    weighed = attention_mask is not None and attention_mask.dtype != torch.bool
    check_arguments(module, others | {"attention_mask": weighed and not (scoring.plain and row_prefix is None)})
    if row_prefix is not None:
        rows, tokens = row_prefix.positions.shape
        if attention_mask is None:
            attention_mask = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril()
        behind = row_prefix.positions[:, None, :, None] - torch.arange(row_prefix.length, device=query.device)
        seen = behind < (sliding_window or torch.inf)
        attention_mask = torch.cat([seen, attention_mask.expand(rows, 1, tokens, tokens)], dim=3)
        before = row_prefix.give(module, key, rows)
        key, value = (torch.cat([own, given], dim=2) for own, given in zip(before, (key, value), strict=True))
    if scoring.plain:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, is_causal=True
        )
    if attention_mask is None:
        attention_mask = _seen(query.shape[2], key.shape[2], None, query.device)
    out = scored_attention(query, key, value, attention_mask, scaling, dropout, scoring)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(PACKED, with_gate(packed_attention, "layout", "prefix"))
AttentionInterface.register(PADDED, with_gate(padded_attention, "row_prefix", "give"))
AttentionMaskInterface.register(PADDED, sdpa_mask)
