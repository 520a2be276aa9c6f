"""What one arm of a training benchmark is given and hands back. It imports in a peer's environment too.

Every arm trains on the same tokens: the rows are encoded once, in the order of training, and each optimiser step takes
the next `batch` rows. The first step settles allocator and threads and is left out of the speed.
"""

import json
import resource
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import Figures

SEED = 0


@dataclass(frozen=True)
class Job:
    """One training run: LoRA on all linear layers, AdamW, a learning rate that falls linearly to zero."""

    model: str
    """Hugging Face folder."""
    rows: str
    """JSONL: `input_ids` and `labels`, or `chosen_ids` and `rejected_ids`."""
    batch: int
    """Rows (or pairs) of one optimiser step."""
    learning_rate: float
    rank: int = 8
    alpha: int = 16
    settings: dict[str, Any] = field(default_factory=dict)
    """Of this arm's trainer; what is absent stays at the trainer's default."""

    @classmethod
    def load(cls, path: str) -> "Job":
        return cls(**json.loads(Path(path).read_text()))

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    def read_rows(self) -> list[dict[str, list[int]]]:
        return [json.loads(line) for line in Path(self.rows).read_text().splitlines()]


def figures(ends: Sequence[float], tokens: Sequence[int], losses: Sequence[float]) -> Figures:
    """Speed, peak memory and loss of a run.

    Args:
        ends: when each optimiser step ended, in seconds.
        tokens: real (not padding) tokens of each step.
        losses: mean loss of each step.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    speed = sum(tokens[1:]) / (ends[-1] - ends[0])
    curve = {f"loss of step {number}": loss for number, loss in enumerate(losses, 1)}
    return {"tokens/s": speed, "peak GB": peak / 1e9, "mean loss": sum(losses) / len(losses)} | curve
