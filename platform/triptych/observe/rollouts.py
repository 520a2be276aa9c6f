"""Sampled answers of reinforcement learning, read back from the Parquet file of a step, group by group."""

import io
import math
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import Any

from triptych import storage
from triptych.errors import UserError
from triptych.observe.log import plain
from triptych.observe.runs import RunView, StageView

FOLDER = "rollouts"
_PREFIX = "step-"
_COLUMNS = ("group", "prompt", "response", "score", "finish_reason", "versions")
"""Columns that every version has written."""


@dataclass(frozen=True)
class SampledAnswer:
    """One answer of a group."""

    text: str
    score: float
    tokens: int
    finish_reason: str
    """`stop`, or `length` for an answer that was cut."""
    version: int
    """Steps of the policy that drew it."""


@dataclass(frozen=True)
class SampledGroup:
    """The answers to one prompt, best first."""

    prompt: str
    answers: tuple[SampledAnswer, ...]

    @property
    def mean(self) -> float:
        return sum(answer.score for answer in self.answers) / len(self.answers)

    @property
    def spread(self) -> float:
        """Best score minus worst."""
        return self.answers[0].score - self.answers[-1].score

    def as_dict(self) -> dict[str, Any]:
        """Plain data, None for a score that is no number."""
        answers = [plain(asdict(answer)) for answer in self.answers]
        return plain({"prompt": self.prompt, "mean": self.mean, "answers": answers})


def sampling_stage(run: RunView, name: str | None) -> StageView:
    """The stage of that name, or the run's only one that has sampled; UserError where there is no such stage."""
    stages = {stage.name: stage for stage in run.stages if steps_of(stage)}
    if name is None and len(stages) == 1:
        return next(iter(stages.values()))
    if name in stages:
        return stages[name]
    if not stages:
        raise UserError(f"{run.name}: no stage has sampled yet; `triptych runs show {run.name}` tells how far it is")
    asked = "name one of its stages by --stage" if name is None else f"--stage: no stage {name!r} has sampled"
    raise UserError(f"{run.name}: {asked}; allowed: {', '.join(stages)}")


def steps_of(stage: StageView) -> list[int]:
    """Steps whose answers are there, counted from 1."""
    names = storage.list_files(storage.join(stage.url, FOLDER))
    numbers = (name.removeprefix(_PREFIX).removesuffix(".parquet") for name in names if name.endswith(".parquet"))
    return sorted(int(number) for number in numbers if number.isdigit())


def read_groups(stage: StageView, step: int | None) -> tuple[int, list[SampledGroup]]:
    """The step (None: the last one) and its groups, highest mean score first, those without a score last.

    Raises:
        UserError: there are no answers of that step.
    """
    steps = steps_of(stage)
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise UserError(f"--step {chosen}: stage {stage.name} has answers of the steps {steps[0]} to {steps[-1]}")
    rows = _rows(storage.join(stage.url, FOLDER, f"{_PREFIX}{chosen:08d}.parquet"))
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    found = [SampledGroup(own[0]["prompt"], _best_first(own)) for own in groups.values()]
    return chosen, sorted(found, key=lambda group: _order(group.mean))


def _rows(url: str) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(storage.read_bytes(url)), columns=list(_COLUMNS)).to_pylist()
    return rows


def _best_first(rows: list[dict[str, Any]]) -> tuple[SampledAnswer, ...]:
    answers = [
        SampledAnswer(
            row["response"],
            math.nan if row["score"] is None else row["score"],
            sum(version is not None for version in row["versions"]),
            row["finish_reason"],
            row["versions"][-1] if row["versions"] else -1,
        )
        for row in rows
    ]
    return tuple(sorted(answers, key=lambda answer: _order(answer.score)))


def _order(score: float) -> float:
    """Higher scores first, and what is no number last."""
    return math.inf if math.isnan(score) else -score
