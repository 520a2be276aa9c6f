"""Entities in sequences of tags, as the scorer of CoNLL-2003 finds them (Tjong Kim Sang & De Meulder 2003)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

Span = tuple[str, int, int]
"""Type, first word, word behind the last."""


def entities(tags: Sequence[str]) -> list[Span]:
    """The entities of a row of tags: `O`, or `B-`, `I-`, `E-`, `S-` before a type (BIO, IOB, BIOES).

    An entity goes on where `B-` or `I-` is followed by `I-` or `E-` of its type; every other tag but `O` begins one,
    as in conlleval and in seqeval's default mode.
    """
    found: list[Span] = []
    before, open_type = "O", ""
    for place, tag in enumerate(tags):
        part, _, kind = tag.partition("-")
        if part in ("I", "E") and before in ("B", "I") and kind == open_type:
            found[-1] = (kind, found[-1][1], place + 1)
        elif part != "O":
            found.append((kind, place, place + 1))
        before, open_type = part, kind
    return found


@dataclass
class EntityCounts:
    """Entities by type: those there are, those named, and those named right, with both borders and the type."""

    true: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)

    def add(self, true: Sequence[str], named: Sequence[str]) -> None:
        """Count one row: its tags and those that a model gave."""
        ours, theirs = set(entities(true)), set(entities(named))
        self.true.update(kind for kind, _, _ in ours)
        self.named.update(kind for kind, _, _ in theirs)
        self.right.update(kind for kind, _, _ in ours & theirs)

    def quotients(self) -> dict[str, tuple[int, int]]:
        """Numerator and denominator of precision, recall and F1: over all types, and of each type that there is."""
        found = _quotients(self.right.total(), self.named.total(), self.true.total())
        for kind in sorted(self.true | self.named):
            parts = _quotients(self.right[kind], self.named[kind], self.true[kind])
            found |= {f"{name}_{kind}": pair for name, pair in parts.items()}
        return found


def _quotients(right: int, named: int, true: int) -> dict[str, tuple[int, int]]:
    return {"precision": (right, named), "recall": (right, true), "f1": (2 * right, named + true)}
