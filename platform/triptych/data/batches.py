"""Which rows go together. Stateless: an epoch's order and a step's micro-batches follow from their arguments alone."""

import hashlib
import heapq
from collections.abc import Sequence
from math import ceil

import torch
from torch import Tensor


def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """A permutation of range(n), another one each epoch."""
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.randperm(n, generator=generator).tolist()


def micro_batches(
    lengths: Sequence[int], budget: int, world_size: int, *, packed: bool = False
) -> list[list[list[int]]]:
    """Cuts the rows of a step into micro-batches, [rank][micro-batch][row index].

    A micro-batch has at most `budget` tokens, unless it is one row that is longer: `packed`, the sum of its rows'
    lengths; else rows of like length go together and each counts as the longest. Each row comes once; each rank has
    the same number of micro-batches, the last of which may be empty where there are too few rows to go round. The work
    is spread evenly: every rank has a micro-batch in each round, and in a round the busiest rank gets the lightest.
    """
    micros = _balanced(lengths, budget, world_size) if packed else _alike(lengths, budget, world_size)
    cost = _sum if packed else _padded
    micros.sort(key=lambda micro: (-cost(micro, lengths), micro))
    rounds = ceil(len(micros) / world_size)
    micros += [[] for _ in range(rounds * world_size - len(micros))]

    ranks: list[list[list[int]]] = [[] for _ in range(world_size)]
    load = [0] * world_size
    for start in range(0, len(micros), world_size):
        idlest_first = sorted(range(world_size), key=lambda rank: (load[rank], rank))
        for rank, micro in zip(idlest_first, micros[start : start + world_size], strict=True):
            ranks[rank].append(micro)
            load[rank] += cost(micro, lengths)
    return ranks


def _balanced(lengths: Sequence[int], budget: int, world_size: int) -> list[list[int]]:
    """Micro-batches of like sums, as few for each rank as the budget allows (Graham 1969: longest row to the lightest).

    The number of rounds grows from a lower bound, by a sixteenth at least so that few tries do, until all are within
    the budget, or single rows.
    """
    longest_first = _longest_first(lengths)
    lower_bound = max(ceil(sum(lengths) / budget), sum(2 * length > budget for length in lengths))
    most = ceil(len(lengths) / world_size)
    rounds = min(ceil(lower_bound / world_size), most)
    while True:
        micros: list[list[int]] = [[] for _ in range(min(rounds * world_size, len(lengths)))]
        lightest_first = [(0, index) for index in range(len(micros))]
        for row in longest_first:
            load, index = lightest_first[0]
            micros[index].append(row)
            heapq.heapreplace(lightest_first, (load + lengths[row], index))
        if rounds == most or all(len(micro) == 1 or _sum(micro, lengths) <= budget for micro in micros):
            return micros
        rounds = min(rounds + max(1, rounds // 16), most)


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
    """Halves the micro-batch of most rows, in place, until there are `count` or each is a single row."""
    while micros and len(micros) < count:
        largest = max(range(len(micros)), key=lambda index: len(micros[index]))
        micro = micros[largest]
        if len(micro) == 1:
            return
        micros[largest : largest + 1] = [micro[: len(micro) // 2], micro[len(micro) // 2 :]]


def _longest_first(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))


def _sum(micro: list[int], lengths: Sequence[int]) -> int:
    return sum(lengths[row] for row in micro)


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
