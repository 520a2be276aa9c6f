"""What was measured, one cell a configuration, in one file."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kept import read_rows, write_rows
from plan.configurations import Configuration

RESULTS = Path(__file__).with_name("memory.json")


@dataclass(frozen=True)
class Cell:
    """A measured configuration."""

    configuration: dict[str, Any]
    figures: dict[str, float]
    """Bytes, as `plan.measure` names them."""
    error: str | None = None
    """Why there are none: the configuration was refused."""
    code: str = ""

    @property
    def of(self) -> Configuration:
        return Configuration(**self.configuration)


def read(path: Path = RESULTS) -> list[Cell]:
    """All cells of a file; none where there is no file."""
    return [Cell(**values) for values in read_rows(path)]


def write(cells: Sequence[Cell], path: Path = RESULTS) -> None:
    """Write one cell a line. The file is whole at every moment."""
    write_rows(path, map(asdict, cells))
