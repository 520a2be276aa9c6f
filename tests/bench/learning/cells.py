"""What was measured of the start and of each algorithm and seed, in one file."""

import json
import math
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from triptych.data.text_scores import SCORERS, distinct_n


@dataclass(frozen=True)
class Cell:
    """Answers of one policy, and what its training took."""

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
    seconds: float = 0.0
    """Of the training steps on the machine that ran them."""
    rewards: list[float] = field(default_factory=list)
    """Mean reward of each step of reinforcement learning."""
    machine: dict[str, Any] = field(default_factory=dict)

    @property
    def algorithm(self) -> str:
        return self.name.rpartition("-")[0]


def read(path: Path) -> dict[str, Cell]:
    """All cells of a file by name; none where there is no file."""
    rows = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    return {row["name"]: Cell(**row) for row in rows}


def write(path: Path, cells: dict[str, Cell]) -> None:
    """One cell a line. The file is whole at every moment."""
    lines = ",\n".join(json.dumps(asdict(cell), sort_keys=True) for cell in cells.values())
    staging = path.with_suffix(".tmp")
    staging.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    staging.replace(path)


def measured(name: str, run: Path, machine: dict[str, Any]) -> Cell:
    """The cell of a run that has ended: its sampled answers, and the log of its training stage."""
    rows = pq.read_table(run / "stages" / "compare" / "artifact" / "films.parquet").to_pylist()
    answers = [answer for row in rows for answer in row["answer"]]
    judged = SCORERS["vader"](answers)
    figures: dict[str, Any] = {
        "judge": statistics.fmean(judged),
        "judge_error": statistics.stdev(judged) / math.sqrt(len(judged)),
        "score": statistics.fmean(row["score"] for row in rows),
        "distinct2": distinct_n(answers),
        "answers": len(answers),
    }
    if name == "start":
        return Cell(name, **figures, machine=machine)
    return Cell(name, **figures, **_training(run / "stages" / "learned"), machine=machine)


def _training(stage: Path) -> dict[str, Any]:
    log = [json.loads(line) for file in sorted((stage / "metrics").glob("*.jsonl")) for line in file.open()]
    log = [row for row in log if "step" in row]
    seconds = [value for row in log for key, value in row.items() if key.startswith("seconds_")]
    rewards = [row["reward"] for row in log if "reward" in row]
    return {"steps": len(log), "seconds": sum(seconds), "rewards": rewards}
