"""What was measured, one cell a configuration, in one file."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    return [Cell(**values) for values in json.loads(path.read_text(encoding="utf-8"))] if path.is_file() else []


def write(cells: Sequence[Cell], path: Path = RESULTS) -> None:
    """One cell a line. The file is whole at every moment."""
    lines = ",\n".join(json.dumps(asdict(cell), sort_keys=True) for cell in cells)
    staging = path.with_suffix(".tmp")
    staging.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    staging.replace(path)
