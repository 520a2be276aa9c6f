"""The torch side of a stage kind: its objectives, and a micro-batch at its limits for dry runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from triptych.objectives import IGNORE
from triptych.train.batch import Batch, language_batch
from triptych.train.learner import Objective


@dataclass(frozen=True)
class Limits:
    """A full micro-batch of random rows: its tokens, the length of its rows, and the share that is learned."""

    tokens: int
    length: int
    vocab: int
    answer_share: float
    """Share of a row, at its end, that a chat's loss counts."""

    def row(self, length: int) -> list[int]:
        """Random tokens; 0 stands for padding and is not among them."""
        return [int(token) for token in torch.randint(1, self.vocab, (length,))]

    def rows(self) -> list[list[int]]:
        """Rows that fill the micro-batch, of equal length but for the last."""
        count, rest = divmod(self.tokens, self.length)
        return [self.row(length) for length in [self.length] * count + ([rest] if rest > 1 else [])]

    def unlearned(self, length: int) -> int:
        """Tokens of a row before the part that is learned."""
        return round(length * (1 - self.answer_share))

    def chats(self) -> Batch:
        """Rows as chats: ids, mask and labels [B, T]."""
        rows = self.rows()
        labels = [[IGNORE] * cut + row[cut:] for row in rows for cut in [self.unlearned(len(row))]]
        return language_batch(list(zip(rows, labels, strict=True)), 0)


@dataclass(frozen=True)
class Task:
    """The objectives of a kind of stage, and its largest micro-batch."""

    objectives: Callable[[Any, Sequence[str]], Sequence[Objective]]
    """The stage, and the names of its trained roles -> an objective for each role."""
    full_batch: Callable[[Any, Limits], Batch]
    """The stage, and limits -> a micro-batch of random rows that is as large as they allow."""
