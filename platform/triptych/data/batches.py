"""The order of rows in an epoch and their micro-batches in a step, as pure functions of their arguments."""

import hashlib
import itertools
from collections.abc import Sequence
from functools import lru_cache
from math import ceil

import torch
from torch import Tensor


@lru_cache(maxsize=2)  # every step of an epoch asks for it
def epoch_order(n: int, seed: int, epoch: int) -> tuple[int, ...]:
    """A permutation of range(n), different in each epoch."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return tuple(torch.randperm(n, generator=generator).tolist())


def step_rows(rows: int, batch: int, seed: int, step: int) -> Sequence[int]:
    """The rows of one optimiser step: each epoch visits every row once, in an order of its own."""
    epoch, position = divmod(step, ceil(rows / batch))
    return epoch_order(rows, seed, epoch)[position * batch : (position + 1) * batch]


TokenRows = Sequence[Sequence[Sequence[int]]]
"""A row is one sequence of tokens, or several that must stay together."""


def cut(rows: TokenRows, budget: int, world_size: int, *, packing: bool) -> list[list[list[int]]]:
    """The micro-batches of a step, packed or padded: [rank][micro-batch][row index]."""
    if packing:
        return packed_micro_batches(rows, budget, world_size)
    return micro_batches([len(row) * max(map(len, row)) for row in rows], budget, world_size)


def computed_tokens(rows: TokenRows, *, packing: bool) -> int:
    """Tokens that a pass over a micro-batch of these rows computes, padding included; 0 for none."""
    sequences = [sequence for row in rows for sequence in row]
    return distinct_tokens(sequences) if packing else len(sequences) * max(map(len, sequences), default=0)


def micro_batches(lengths: Sequence[int], budget: int, world_size: int) -> list[list[list[int]]]:
    """Cut the rows of a step into micro-batches to be padded: [rank][micro-batch][row index].

    Rows of like length go together. Padded to its longest row, a micro-batch has at most `budget` tokens, unless it is
    one row that is longer. Each row comes once; each rank has the same number of micro-batches, the last of which may
    be empty where there are too few rows to go round. The work is spread evenly: every rank has a micro-batch in each
    round, and in a round the busiest rank gets the lightest.
    """
    micros = _alike(lengths, budget, world_size)
    return _dealt([(_padded(micro, lengths), micro) for micro in micros], world_size)


def packed_micro_batches(rows: TokenRows, budget: int, world_size: int) -> list[list[list[int]]]:
    """`micro_batches` without padding.

    Sequences that begin alike go together, and what they share is computed, and counted, once.
    """
    order = sorted(range(len(rows)), key=lambda index: [list(sequence) for sequence in rows[index]])
    alone = [distinct_tokens(rows[index]) for index in order]
    after = [
        distinct_tokens([*rows[one], *rows[other]]) - tokens
        for one, other, tokens in zip(order, order[1:], alone, strict=False)
    ]
    pieces = _filled(alone, after, budget)
    count = min(ceil(len(pieces) / world_size) * world_size, len(rows))
    pieces = _filled(alone, after, _least_limit(alone, after, budget, count))
    _halved(pieces, count)
    micros = [(_cost(piece, alone, after), [order[place] for place in piece]) for piece in pieces]
    return _dealt(micros, world_size)


def distinct_tokens(sequences: Sequence[Sequence[int]]) -> int:
    """Number of tokens of all sequences, shared prefixes counted once."""
    ordered = sorted(list(sequence) for sequence in sequences)
    shared = sum(common_prefix(one, other) for one, other in itertools.pairwise(ordered))
    return sum(map(len, ordered)) - shared


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Number of tokens that both begin with."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _dealt(micros: list[tuple[int, list[int]]], world_size: int) -> list[list[list[int]]]:
    """Deal (cost, micro-batch) in rounds of like cost, as many to each rank; the busiest rank gets the lightest."""
    micros = sorted(micros, key=lambda micro: (-micro[0], micro[1]))
    micros += [(0, [])] * (-len(micros) % world_size)
    ranks: list[list[list[int]]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    for start in range(0, len(micros), world_size):
        idlest_first = sorted(range(world_size), key=lambda rank: (load[rank], rank))
        for rank, (cost, micro) in zip(idlest_first, micros[start : start + world_size], strict=True):
            ranks[rank].append(micro)
            load[rank] += cost
    return ranks


def _filled(alone: list[int], after: list[int], limit: int) -> list[list[int]]:
    """Runs of consecutive places, each filled up to the limit.

    A place costs `alone[place]` at the beginning of a run, `after[place - 1]` behind its neighbour.
    """
    pieces: list[list[int]] = []
    cost = 0
    for place, tokens in enumerate(alone):
        if pieces and cost + after[place - 1] <= limit:
            pieces[-1].append(place)
            cost += after[place - 1]
        else:
            pieces.append([place])
            cost = tokens
    return pieces


def _least_limit(alone: list[int], after: list[int], budget: int, count: int) -> int:
    """The smallest limit that fills at most `count` runs, which makes them even."""
    low, high = 1, budget
    while low < high:
        middle = (low + high) // 2
        if len(_filled(alone, after, middle)) <= count:
            high = middle
        else:
            low = middle + 1
    return low


def _cost(piece: list[int], alone: list[int], after: list[int]) -> int:
    return alone[piece[0]] + sum(after[place - 1] for place in piece[1:])


def _alike(lengths: Sequence[int], budget: int, world_size: int) -> list[list[int]]:
    """Longest rows first, each micro-batch filled up to the budget; the largest are halved until all ranks have one."""
    micros: list[list[int]] = []
    for row in _longest_first(lengths):
        if micros and (len(micros[-1]) + 1) * lengths[micros[-1][0]] <= budget:
            micros[-1].append(row)
        else:
            micros.append([row])
    _halved(micros, ceil(len(micros) / world_size) * world_size)
    return micros


def _halved(micros: list[list[int]], count: int) -> None:
    """Halve the micro-batch of most rows, in place, until there are `count` or each is a single row."""
    while micros and len(micros) < count:
        largest = max(range(len(micros)), key=lambda index: len(micros[index]))
        micro = micros[largest]
        if len(micro) == 1:
            return
        micros[largest : largest + 1] = [micro[: len(micro) // 2], micro[len(micro) // 2 :]]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


def _padded(micro: list[int], lengths: Sequence[int]) -> int:
    return len(micro) * max((lengths[row] for row in micro), default=0)


def pad_right(seqs: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Token ids [B, T] filled up with `pad`, and their mask [B, T] (1 = a token, 0 = padding); both int64."""
    width = max(map(len, seqs), default=0)
    ids = torch.full((len(seqs), width), pad, dtype=torch.int64)
    mask = torch.zeros((len(seqs), width), dtype=torch.int64)
    for row, seq in enumerate(seqs):
        ids[row, : len(seq)] = torch.tensor(seq, dtype=torch.int64)
        mask[row, : len(seq)] = 1
    return ids, mask
