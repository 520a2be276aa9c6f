"""Attention with capped scores or sinks, which torch's kernels lack: a block of queries at a time, in float32 or more.

Capped (Gemma 2): c tanh(s / c) in place of each score s. A sink (gpt-oss) is a score of each head that takes its share
of the softmax and has no value: probabilities sum to less than one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import dropout
from torch.utils.checkpoint import checkpoint

QUERIES = 128
"""Queries of a block; the backward pass computes a block's probabilities again."""


@dataclass(frozen=True)
class Scoring:
    """What a model does with its scores before they weigh values."""

    cap: float | None = None
    """Limit that scores approach."""
    sinks: Tensor | None = None
    """[H] score of each head's sink."""

    @property
    def plain(self) -> bool:
        """True if scores stay as they are."""
        return self.cap is None and self.sinks is None


def scored_attention(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float | None, dropped: float, scoring: Scoring
) -> Tensor:
    """Query [B, H, n, D], key [B, K, m, D], value [B, K, m, E] -> [B, H, n, E]; the queries are the last n of m tokens.

    `seen` [..., n, m], true where a query sees a key; `dropped`: rate of dropout on the probabilities.
    """
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, dim=1) for x in (key, value))
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    before, blocks = key.shape[2] - query.shape[2], []
    for start in range(0, query.shape[2], QUERIES):
        rows = slice(start, start + QUERIES)
        keys = slice(0, before + rows.stop)  # later ones are seen by none of these
        given = (query[:, :, rows], key[:, :, keys], value[:, :, keys], seen[..., rows, keys])
        if query.shape[2] <= QUERIES:
            return _block(*given, scaling, dropped, scoring.cap, scoring.sinks)
        blocks.append(checkpoint(_block, *given, scaling, dropped, scoring.cap, scoring.sinks, use_reentrant=False))
    return torch.cat(blocks, dim=2)


def _block(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    seen: Tensor,
    scaling: float,
    dropped: float,
    cap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    scores = query @ key.mT * scaling
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if cap is not None:
        scores = torch.tanh(scores / cap) * cap
    # Padding behind a row sees nothing inside a window; its softmax must not be one of no number.
    scores = scores.masked_fill(seen.logical_not(), torch.finfo(scores.dtype).min)
    if sinks is not None:
        sink = sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, sink], dim=-1)
    probabilities = scores.softmax(dim=-1)[..., : key.shape[2]].to(value.dtype)
    return dropout(probabilities, dropped) @ value
