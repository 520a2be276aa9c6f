"""Seeded choices among rows that come one by one."""

import itertools
import random
from collections.abc import Iterator, Sequence
from fractions import Fraction

from triptych.data.rows import DataRow

RowGroups = Iterator[Sequence[DataRow]]
"""The rows of each row of a file: several for a ranking."""

_BLOCK = 1000


def sampled(rows: RowGroups, count: int, seed: int) -> RowGroups:
    """So many of the rows (all where there are fewer), each as likely as any other, in their order.

    A reservoir (Vitter 1985, algorithm R): the rows are read once, and `count` of them are held.
    """
    draw = random.Random(seed)
    held: list[tuple[int, Sequence[DataRow]]] = []
    for number, row in enumerate(rows):
        place = len(held) if len(held) < count else draw.randrange(number + 1)
        if place < count:
            held[place : place + 1] = [(number, row)]
    yield from (row for _, row in sorted(held, key=lambda item: item[0]))


def shuffled(rows: RowGroups, seed: int) -> RowGroups:
    """All rows in a random order. They are held in memory."""
    held = list(rows)
    random.Random(seed).shuffle(held)
    yield from held


def weighted(rows: RowGroups, weight: float, seed: int) -> RowGroups:
    """Each row as often as the weight says: of n rows, floor(n * weight) come.

    A part of a row is drawn at random, without replacement, from each block of rows.
    """
    times, share = divmod(Fraction(weight).limit_denominator(10_000), 1)
    draw = random.Random(seed)
    seen = given = 0
    while block := list(itertools.islice(rows, _BLOCK)):
        seen += len(block)
        more = set(draw.sample(range(len(block)), int(share * seen) - given))
        given += len(more)
        for place, row in enumerate(block):
            yield from itertools.repeat(row, int(times) + (place in more))
