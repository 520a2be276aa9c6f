"""What was measured, cell by cell, in one file; and what is still to be measured."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import Figures
from kept import read_rows, write_rows
from methods.settings import LEVELS
from methods.tasks import Task

OURS, PEFT = "triptych", "peft"
"""Arms: the whole training, one of several side by side."""
TIMED = {OURS: "triptych, timed", PEFT: "peft, timed"}
"""Arms: a few steps of it, alone on the machine; `seed` counts rounds."""


@dataclass(frozen=True)
class Key:
    """One training run."""

    data: str
    method: str
    level: int
    """Which of the method's learning rates."""
    seed: int
    """Draws the order of the rows and the first weights."""
    arm: str = OURS


@dataclass(frozen=True)
class Cell(Key):
    """A run that has ended."""

    learning_rate: Any = None
    """Of each part of the method."""
    figures: Figures = field(default_factory=dict)
    error: str | None = None
    """Why there are no figures: the method was refused, or did not learn."""
    digest: str = ""
    """Of the task's rows and settings."""
    code: str = ""
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return Key(self.data, self.method, self.level, self.seed, self.arm)


def read(path: Path) -> list[Cell]:
    """All cells of a file; none where there is no file."""
    return [Cell(**values) for values in read_rows(path)]


def write(path: Path, cells: Sequence[Cell]) -> None:
    """Write one cell a line. The file is whole at every moment."""
    write_rows(path, map(asdict, cells))


class Results:
    """The cells that count for a task: those of the same rows and settings."""

    def __init__(self, cells: Sequence[Cell], data: str, task: Task, digest: str | None = None) -> None:
        """`digest` None: that of the task's last cell."""
        own = [cell for cell in cells if cell.data == data]
        self.digest = digest or (own[-1].digest if own else "")
        self.cells = {cell.key: cell for cell in own if cell.digest == self.digest}
        self._data, self._task = data, task

    def chosen(self, method: str) -> int | None:
        """The level that was best with seed 0; None before all were tried, or where none learned."""
        tried = [self.cells.get(Key(self._data, method, level, 0)) for level in range(LEVELS)]
        figures = {level: cell.figures for level, cell in enumerate(tried) if cell is not None and not cell.error}
        if None in tried or not figures:
            return None
        sign = 1 if self._task.best == "max" else -1
        return max(figures, key=lambda level: sign * figures[level][self._task.figure])

    def at_best(self, method: str, arm: str = OURS) -> list[Cell]:
        """The seeds of the chosen level that have figures."""
        level = self.chosen(method)
        found = (cell for key, cell in self.cells.items() if (key.method, key.level, key.arm) == (method, level, arm))
        return sorted((cell for cell in found if not cell.error), key=lambda cell: cell.seed)

    def missing(self, method: str, seeds: int) -> Iterator[Key]:
        """What is left to run for a row of the table: each level with seed 0, then the best with the other seeds."""
        wanted = [Key(self._data, method, level, 0) for level in range(LEVELS)]
        if (best := self.chosen(method)) is not None:
            wanted += [Key(self._data, method, best, seed) for seed in range(1, seeds)]
        yield from (key for key in wanted if key not in self.cells)

    def missing_beside(self, method: str, seeds: int) -> Iterator[Key]:
        """What is left to run by peft's own implementation: every seed at the level that is our best."""
        if (best := self.chosen(method)) is not None:
            wanted = [Key(self._data, method, best, seed, PEFT) for seed in range(seeds)]
            yield from (key for key in wanted if key not in self.cells)

    def missing_timed(self, method: str, rounds: int, *, beside_peft: bool) -> Iterator[Key]:
        """What is left to time at the best level: once, or in `rounds` pairs with peft, whose order turns around."""
        best = self.chosen(method)
        if best is None:
            return
        for number in range(rounds if beside_peft else 1):
            arms = [OURS, PEFT][: 1 + beside_peft]
            keys = [Key(self._data, method, best, number, TIMED[arm]) for arm in arms]
            yield from (key for key in (keys if number % 2 == 0 else keys[::-1]) if key not in self.cells)
