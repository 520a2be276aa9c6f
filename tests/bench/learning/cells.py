"""What was measured of the start and of each algorithm and seed, in one file."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kept import read_rows, write_rows
from learning.settings import MINUTES


@dataclass(frozen=True)
class Cell:
    """Answers of one policy to held-out requests, and what its training took."""

    name: str
    """`start`, or the algorithm and the seed: `ppo-0`."""
    judge: float
    """Mean sentiment of the sampled answers by VADER, which no training sees."""
    judge_error: float
    """Standard error of it over answers."""
    score: float
    """Mean of the reward model's scores."""
    distinct2: float
    """Distinct pairs of words over all of them."""
    answers: int
    steps: int = 0
    minutes: float = MINUTES
    """Time that the number of steps follows from."""
    seconds: float = 0.0
    """Of the training steps on the machine that ran them."""
    ends: list[float] = field(default_factory=list)
    """Seconds up to the end of each step."""
    rewards: list[float] = field(default_factory=list)
    """Mean reward of the answers that each step of reinforcement learning samples."""
    judges: list[float] = field(default_factory=list)
    """Mean sentiment of the same answers."""
    kls: list[float] = field(default_factory=list)
    """KL to the start of the policy that sampled them, nats an answer."""
    start: str = ""
    """Beginning of the digest of the SFT policy that was started from; cells of another one are not comparable."""
    code: str = ""
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def algorithm(self) -> str:
        return self.name.rpartition("-")[0]


def read(path: Path) -> dict[str, Cell]:
    """All cells of a file by name; none where there is no file."""
    return {row["name"]: Cell(**row) for row in read_rows(path)}


def write(path: Path, cells: dict[str, Cell]) -> None:
    """Write one cell a line. The file is whole at every moment."""
    write_rows(path, map(asdict, cells.values()))


def of_algorithm(cells: dict[str, Cell], algorithm: str) -> list[Cell]:
    """An algorithm's cells, by seed."""
    return sorted((cell for cell in cells.values() if cell.algorithm == algorithm), key=lambda cell: cell.name)
