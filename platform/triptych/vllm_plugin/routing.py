"""Routing of tokens to their adapters: computed once a step, used by every layer."""

from dataclasses import dataclass

import torch
from torch import Tensor

# Padding is taken while the padded batch is below this many rows: there a row costs less than one more call.
CHEAP_ROWS = 256


@dataclass(frozen=True)
class Routing:
    """The rows of a batch in the order of their adapters.

    Row `gather[p]` of the batch sits at position p of the layout, and row i of the batch finds its result at position
    `scatter[i]`; rows without an adapter find the row of zeros that stands after the last position. Slots `first` to
    `last` own consecutive segments of the layout, with `bounds` as their limits. If `padded`, all have the same length:
    the layout reads as [slots, rows a slot], and one batched product serves all adapters. The padding repeats row 0 of
    the batch and is never scattered.
    """

    slots: int  # bit s is set if slot s has rows
    first: int
    last: int
    whole: bool  # every row belongs to the slot `first`
    padded: bool
    bounds: tuple[int, ...]
    gather: Tensor
    scatter: Tensor
    groups: tuple[tuple[int, Tensor], ...]  # (slot, its rows in the batch), slots without rows left out

    @property
    def size(self) -> int:
        """Positions in the layout."""
        return self.bounds[-1]


def route(indices: Tensor) -> Routing | None:
    """Routing of a batch whose row i uses the adapter in slot `indices[i]` ([rows], int64), -1 being none.

    None if no row uses an adapter.
    """
    counts = torch.bincount(indices + 1)
    without, counts = int(counts[0]), counts[1:]
    active = counts.nonzero().flatten().tolist()
    if not active:
        return None
    first, last = active[0], active[-1]
    counts = counts[first : last + 1]
    rows = int(counts.sum())
    longest = int(counts.max())
    padded = len(counts) * longest <= max(2 * rows, CHEAP_ROWS)
    lengths = torch.full_like(counts, longest) if padded else counts
    starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])

    order = indices.argsort(stable=True)[without:]
    group = indices[order] - first
    rank = torch.arange(rows) - (counts.cumsum(0) - counts)[group]
    position = starts[group] + rank
    size = int(starts[-1])
    gather = torch.zeros(size, dtype=torch.int64)
    gather[position] = order
    scatter = torch.full_like(indices, size)
    scatter[order] = position
    return Routing(
        slots=sum(1 << slot for slot in active),
        first=first,
        last=last,
        whole=first == last and without == 0,
        padded=padded,
        bounds=tuple(starts.tolist()),
        gather=gather,
        scatter=scatter,
        groups=tuple((slot, rows) for slot, rows in enumerate(order.split(counts.tolist()), first) if len(rows)),
    )
