"""Hidden states of rows, laid end to end or padded, behind what a method puts before every row."""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from triptych.forward.attention import Layout, RowPrefix, joined, lay_out
from triptych.forward.gather import gather
from triptych.methods.base import Attachment, Prefix

Tokens = tuple[Tensor, Tensor]
"""ids and mask [B, T]."""


@dataclass(frozen=True)
class Before:
    """Virtual tokens and prefix before every row of one pass."""

    prompt: Tensor | None = None
    """[P, d] embeddings of virtual tokens."""
    prefix: Prefix | None = None
    """Keys and values of each layer, before the virtual tokens."""
    prefix_length: int = 0


def before_rows(attachments: Iterable[Attachment]) -> Before:
    """Compute what the active role's attachments put before every row."""
    prompt, prefix, length = None, None, 0
    for attachment in attachments:
        if attachment.prompt is not None:
            prompt = attachment.prompt()
        if attachment.prefix_length:
            prefix, length = attachment.prefix(), attachment.prefix_length
    return Before(prompt, prefix, length)


def packed_states(decoder: Any, ids: Tensor, mask: Tensor, before: Before) -> Tensor:
    """Last hidden states [B, T, d] of tokens [B, T]; zero at padding, which may stand on either side."""
    virtual = 0 if before.prompt is None else len(before.prompt)
    layout = lay_out(ids, mask, virtual=virtual, prefix=before.prefix, prefix_length=before.prefix_length)
    tokens = _inputs(decoder, layout.ids[None, virtual:], before.prompt)
    output = decoder(**tokens, position_ids=layout.positions[None], use_cache=False, layout=layout)
    return _padded(output.last_hidden_state[0], layout, mask)


def padded_states(decoder: Any, ids: Tensor, mask: Tensor, before: Before) -> Tensor:
    """Last hidden states [B, T, d] of tokens [B, T]; padding may stand on either side.

    Rows are computed with their padding behind them, where no kind of causal layer can see it.
    """
    order, places = begin_alike(mask)
    tokens = _inputs(decoder, ids.gather(1, order), before.prompt)
    virtual = 0 if before.prompt is None else len(before.prompt)
    mask = torch.cat([mask.new_ones(len(mask), virtual), mask.gather(1, order)], dim=1)
    if before.prefix is not None:
        positions = (torch.arange(mask.shape[1], device=mask.device) + before.prefix_length).expand(len(mask), -1)
        tokens |= {"position_ids": positions, "row_prefix": RowPrefix(before.prefix, before.prefix_length, positions)}
    output = decoder(**tokens, attention_mask=mask, use_cache=False)
    return _take(output.last_hidden_state[:, virtual:], places)


def begin_alike(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Order [B, T] that moves the padding of rows behind their tokens, and the place [B, T] of each token in it."""
    order = (mask == 0).to(torch.int8).argsort(dim=1, stable=True)
    return order, order.argsort(dim=1)


def packed_together(decoder: Any, batches: Mapping[str, Tokens], rows: dict[str, slice]) -> dict[str, Tensor]:
    """`packed_states` of each role's tokens, from one pass; `rows` is told before it which of its rows are whose."""
    layouts = {role: lay_out(ids, mask) for role, (ids, mask) in batches.items()}
    rows |= _spans({role: len(layout.ids) for role, layout in layouts.items()})
    layout = joined(list(layouts.values()))
    ids, positions = layout.ids[None], layout.positions[None]
    packed = decoder(input_ids=ids, position_ids=positions, use_cache=False, layout=layout).last_hidden_state[0]
    return {role: _padded(packed[rows[role]], layouts[role], mask) for role, (_, mask) in batches.items()}


def padded_together(decoder: Any, batches: Mapping[str, Tokens], rows: dict[str, slice]) -> dict[str, Tensor]:
    """`padded_states` of each role's tokens, from one pass; `rows` is told before it which of its rows are whose."""
    width = max(ids.shape[1] for ids, _ in batches.values())
    wide = [[pad(side, (0, width - side.shape[1])) for side in tokens] for tokens in batches.values()]
    ids, mask = (torch.cat(side) for side in zip(*wide, strict=True))
    rows |= _spans({role: len(ids) * width for role, (ids, _) in batches.items()})
    pieces = padded_states(decoder, ids, mask, Before()).split([len(ids) for ids, _ in batches.values()])
    return {role: piece[:, : tokens[0].shape[1]] for (role, tokens), piece in zip(batches.items(), pieces, strict=True)}


def _spans(sizes: Mapping[str, int]) -> dict[str, slice]:
    """Consecutive slices of these sizes."""
    ends = itertools.accumulate(sizes.values())
    return {role: slice(end - size, end) for (role, size), end in zip(sizes.items(), ends, strict=True)}


def _padded(packed: Tensor, layout: Layout, mask: Tensor) -> Tensor:
    """Hidden states [N, d] of a layout -> [B, T, d]."""
    padded = packed.new_zeros(mask.numel(), packed.shape[1])
    real = mask.flatten().nonzero()[:, 0]
    return padded.index_copy(0, real, gather(packed, 0, layout.places)).view(*mask.shape, -1)


def _inputs(decoder: Any, ids: Tensor, prompt: Tensor | None) -> dict[str, Any]:
    """Tokens [B, T]; or, where there is a prompt, its embeddings and theirs: [B, P + T, d]."""
    if prompt is None:
        return {"input_ids": ids}
    embeddings = decoder.get_input_embeddings()(ids)
    rows = prompt.to(embeddings.dtype).expand(len(ids), -1, -1)
    return {"inputs_embeds": torch.cat([rows, embeddings], dim=1)}


def _take(states: Tensor, places: Tensor) -> Tensor:
    """[B, N, d] at [B, T] -> [B, T, d]."""
    return states.gather(1, places[:, :, None].expand(-1, -1, states.shape[2]))
