"""Sampled answers of reinforcement learning, of a step or of an evaluation, read back group by group."""

import io
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from triptych import storage
from triptych.errors import UserError
from triptych.observe.log import plain
from triptych.observe.runs import RunView, StageView
from triptych.recipe.heldout import UNNAMED

FOLDER, _SAMPLES = "rollouts", "samples"
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
    """Steps of the policy that drew it; -1 where that was not written down, as for `tokens`."""


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
    stages = {stage.name: stage for stage in run.stages if steps_of(stage) or evaluations_of(stage)}
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
    if not steps:
        raise UserError(f"stage {stage.name} took no step yet; `--heldout` shows its held-out answers")
    chosen = steps[-1] if step is None else step
    if chosen not in steps:
        raise UserError(f"--step {chosen}: stage {stage.name} has answers of the steps {steps[0]} to {steps[-1]}")
    rows = _rows(storage.join(stage.url, FOLDER, f"{_PREFIX}{chosen:08d}.parquet"))
    groups: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row["group"]].append(row)
    found = [SampledGroup(own[0]["prompt"], _best_first(own)) for own in groups.values()]
    return chosen, sorted(found, key=lambda group: _order(group.mean))


def evaluations_of(stage: StageView) -> dict[str, list[str]]:
    """Held-out set (`heldout`: the one without a name) -> labels of the evaluations with its answers, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in storage.list_files(storage.join(stage.url, _SAMPLES)):
        label, _, own = name.removesuffix(".jsonl").partition(".")
        found[own or UNNAMED].append(label)
    return {name: sorted(labels, key=_when) for name, labels in found.items()}


def read_heldout(stage: StageView, name: str, step: int | None) -> tuple[str, list[SampledGroup]]:
    """The label of an evaluation, and its groups of a held-out set, ordered as those of `read_groups`.

    `step`: 0 is before the first one; None: the last evaluation.

    Raises:
        UserError: there are no such answers.
    """
    there = evaluations_of(stage)
    if name not in there:
        known = ", ".join(there) or "none, for no held-out prompts were answered yet"
        raise UserError(f"--heldout: stage {stage.name} has no answers of {name!r}; allowed: {known}")
    label = there[name][-1] if step is None else "before" if step == 0 else f"{_PREFIX}{step:08d}"
    if label not in there[name]:
        raise UserError(f"--step {step}: {name} was answered {', '.join(there[name])}")
    rows = stage.samples[label if name == UNNAMED else f"{label}.{name}"]
    groups: dict[Any, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        groups[row.get("group", row["prompt"])].append(row)  # versions before wrote down no group
    found = [SampledGroup(own[0]["prompt"], _sorted(map(_heldout_answer, own))) for own in groups.values()]
    return label, sorted(found, key=lambda group: _order(group.mean))


def _when(label: str) -> tuple[int, str]:
    """Before the first step, at each, after the last."""
    return {"before": 0, "after": 2}.get(label, 1), label


def _heldout_answer(row: dict[str, Any]) -> SampledAnswer:
    score = row.get("reward")
    told = (row.get("tokens", -1), row.get("finish_reason", "?"), row.get("version", -1))
    return SampledAnswer(row["response"], math.nan if score is None else score, *told)


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
    return _sorted(answers)


def _sorted(answers: Iterable[SampledAnswer]) -> tuple[SampledAnswer, ...]:
    return tuple(sorted(answers, key=lambda answer: _order(answer.score)))


def _order(score: float) -> float:
    """Higher scores first, and what is no number last."""
    return math.inf if math.isnan(score) else -score
