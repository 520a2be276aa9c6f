"""Rows and a task for the loop of supervised stages: fixed sequences, and a training that dies at one of its steps."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from triptych.observe.progress import Progress
from triptych.stages.supervised.loop import Rows
from triptych.train.batch import Batch, language_batch
from triptych.train.learner import Sums
from triptych.train.tasks.language import LanguageModeling

SEQUENCES = [[10 + row, 11, 12 + row, 13, *range(20, 20 + row % 5)] for row in range(12)]


class Silent(Progress):
    """Nobody is told."""

    def update(self, stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        """Nothing."""


class Killed(Exception):  # noqa: N818 - a signal is no error
    """Stands for SIGKILL."""


@dataclass(frozen=True)
class Mortal(LanguageModeling):
    """Dies at one of its steps."""

    deaths: Iterator[bool]

    def denominators(self, batch: Batch) -> Sums:
        if next(self.deaths):
            raise Killed
        return super().denominators(batch)


def rows() -> Rows:
    def batch(places: Any) -> Batch:
        return language_batch([(SEQUENCES[place], SEQUENCES[place]) for place in places], pad=0)

    return Rows([[sequence] for sequence in SEQUENCES], batch)
