"""A cell from the folder of a run that has ended: its sampled answers, and the records of its training stage."""

import json
import math
import statistics
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from learning.cells import Cell
from learning.recipes import COMPARE, SET, STAGE, START
from triptych.data.text_scores import SCORERS, distinct_n
from triptych.observe.log import read_metrics

JUDGE = "vader"
BESIDE = ("seconds_checkpoint", "seconds_evaluate")
"""Parts of a row of the log that are no training."""
DIGITS = 12
"""Of a digest."""


def measured(name: str, run: Path, minutes: float, **origin: Any) -> Cell:
    """The cell of a run; `origin`: its code and machine."""
    stages = run / "stages"
    figures = answered(stages / COMPARE / "artifact" / f"{SET}.parquet")
    if name == "start":
        own = json.loads((stages / "sft" / "summary.json").read_text(encoding="utf-8"))["sha256"]
        return Cell(name, **figures, minutes=minutes, start=own[:DIGITS], **origin)
    begun = json.loads((stages / STAGE / "state.json").read_text(encoding="utf-8"))["parents"]
    start = begun[f"{START}-sft@1"][:DIGITS]
    return Cell(name, **figures, **trained(stages / STAGE), minutes=minutes, start=start, **origin)


def answered(file: Path) -> dict[str, Any]:
    """Figures of the answers to held-out requests."""
    rows = pq.read_table(file).to_pylist()
    answers = [answer for row in rows for answer in row["answer"]]
    judged = SCORERS[JUDGE](answers)
    return {
        "judge": statistics.fmean(judged),
        "judge_error": statistics.stdev(judged) / math.sqrt(len(judged)),
        "score": statistics.fmean(row["score"] for row in rows),
        "distinct2": distinct_n(answers),
        "answers": len(answers),
    }


def trained(stage: Path) -> dict[str, Any]:
    """Steps and seconds of a training stage; of reinforcement learning also the course of its own answers."""
    log = read_metrics(str(stage))
    ends = list(accumulate(seconds_of(row) for row in log))
    sampled = [pq.read_table(file)["response"].to_pylist() for file in sorted((stage / "rollouts").glob("*.parquet"))]
    return {
        "steps": len(log),
        "seconds": ends[-1],
        "ends": ends,
        "rewards": [row["reward"] for row in log if "reward" in row],
        "judges": [statistics.fmean(SCORERS[JUDGE](answers)) for answers in sampled],
        "kls": [row["kl"] for row in log if "kl" in row],
    }


def seconds_of(row: dict[str, Any]) -> float:
    """Seconds of the step that a row of the log is of."""
    parts = (value for key, value in row.items() if key.startswith("seconds_") and key not in BESIDE)
    return float(sum(parts))
