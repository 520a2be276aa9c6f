"""Which rows go together. Stateless: an epoch's order and a step's micro-batches follow from their arguments alone."""

import hashlib
from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(n), another one each epoch."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randperm(n, generator=generator).tolist()


def micro_batches(lengths: Sequence[int], budget: int, world_size: int) -> list[list[list[int]]]:
    """Cuts the rows of a step into micro-batches, [rank][micro-batch][row index].

    Rows of like length go together. Padded to its longest row, a micro-batch has at most `budget` tokens, unless it is
    one row that is longer. Each row comes once; each rank has the same number of micro-batches, the last of which may
    be empty where there are too few rows to go round. The work is spread evenly: micro-batches are halved until every
    rank has one in each round, and in a round the busiest rank gets the lightest.
    """
    micros = _packed(lengths, budget)
    rounds = ceil(len(micros) / world_size)
    _halved(micros, rounds * world_size)
    micros.sort(key=lambda micro: (-_padded(micro, lengths), micro))
    micros += [[] for _ in range(rounds * world_size - len(micros))]

    ranks: list[list[list[int]]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    for start in range(0, len(micros), world_size):
        idlest_first = sorted(range(world_size), key=lambda rank: (load[rank], rank))
        for rank, micro in zip(idlest_first, micros[start : start + world_size], strict=True):
            ranks[rank].append(micro)
            load[rank] += _padded(micro, lengths)
    return ranks


def _packed(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Longest rows first, each micro-batch filled up to the budget."""
    micros: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        if micros and (len(micros[-1]) + 1) * lengths[micros[-1][0]] <= budget:
            micros[-1].append(row)
        else:
            micros.append([row])
    return micros


def _halved(micros: list[list[int]], count: int) -> None:
    """Halves the micro-batch of most rows, in place, until there are `count` or each is a single row."""
    while micros and len(micros) < count:
        largest = max(range(len(micros)), key=lambda index: len(micros[index]))
        micro = micros[largest]
        if len(micro) == 1:
            return
        micros[largest : largest + 1] = [micro[: len(micro) // 2], micro[len(micro) // 2 :]]


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
