"""Figures of models beside each other, and the gates that judge them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from triptych import storage
from triptych.data.table import read_table
from triptych.errors import RunError
from triptych.recipe import Evaluation, FigureGate
from triptych.recipe.measures import Better
from triptych.stages.context import StageContext
from triptych.stages.evaluation.base import Figures, RowColumns
from triptych.stages.evaluation.models import MeasuredModel
from triptych.stages.evaluation.statistics import Interval, Statistic
from triptych.stages.evaluation.table import MEASURES
from triptych.stages.evaluation.worker import read_scores

Estimates = Mapping[str, Mapping[str, Mapping[str, Statistic]]]
"""Set -> model -> figure."""


def estimates(ctx: StageContext[Evaluation]) -> Estimates:
    """All figures, from the committed numbers of each row."""
    return {name: dict(_of_set(ctx, name)) for name in ctx.stage.sets}


def _of_set(ctx: StageContext[Evaluation], name: str) -> Iterator[tuple[str, Mapping[str, Statistic]]]:
    measure = ctx.stage.sets[name].measure
    rows = read_table(storage.join(ctx.folder, "data", name))
    first: RowColumns | None = None
    for ref in ctx.stage.models:
        own = read_scores(ctx, name, ref)
        yield ref, MEASURES[measure.name].estimates(Figures(own, first, rows), measure)
        first = own if first is None else first


def comparison(stage: Evaluation, models: Sequence[MeasuredModel], found: Estimates) -> dict[str, Any]:
    """Plain data: each figure of each model with its interval, and its difference from the first model's.

    `versions` says which registered version each model was; the base has none.
    """
    sets = {}
    for name, one in stage.sets.items():
        figures = MEASURES[one.measure.name].figures(one.measure)
        sets[name] = {
            "measure": one.measure.name,
            "rows": len(next(iter(found[name][stage.models[0]].values())).influence),
            "figures": {
                metric: {
                    "better": figures[metric],
                    "rows": _rows(found[name], metric),
                    "models": _beside(found[name], metric),
                }
                for metric in figures
            },
        }
    versions = {model.ref: model.version.ref for model in models if model.version is not None}
    return {"models": list(stage.models), "versions": versions, "sets": sets}


def _rows(models: Mapping[str, Mapping[str, Statistic]], metric: str) -> int:
    """Rows that a figure is of: tasks of one set have rows of their own."""
    return next((len(own[metric].influence) for own in models.values() if metric in own), 0)


def _beside(models: Mapping[str, Mapping[str, Statistic]], metric: str) -> dict[str, Any]:
    first = next(iter(models.values())).get(metric)
    found: dict[str, Any] = {}
    for ref, own in models.items():
        if metric in own:
            found[ref] = own[metric].interval().as_dict()
            if first is not None and own[metric] is not first:
                found[ref]["difference"] = own[metric].less(first).as_dict()
    return found


def flat(stage: Evaluation, found: Estimates) -> dict[str, float]:
    """Each figure by set, model and name, as `chats.sft.loss`."""
    return {
        f"{name}.{ref}.{metric}": estimate.value
        for name, models in found.items()
        for ref, figures in models.items()
        for metric, estimate in figures.items()
    }


def check_gates(ctx: StageContext[Evaluation], found: Estimates) -> None:
    """RunError that names every gate that is not passed, with its figure and limit."""
    failed = [reason for i, gate in enumerate(ctx.stage.gate) if (reason := _failure(ctx.stage, i, gate, found))]
    if failed:
        raise RunError(
            f"stage {ctx.name}: {'; '.join(failed)}: no further stage starts; all figures are in "
            f"{storage.join(ctx.folder, 'evaluations', 'comparison.json')}"
        )


def _failure(stage: Evaluation, number: int, gate: FigureGate, found: Estimates) -> str | None:
    """The reason why a gate is not passed; None: it is."""
    metric, _ = _judged(stage, gate)
    own = found[gate.set][gate.model][metric]
    what = f"gate.{number}: {metric} of {gate.model} on {gate.set}"
    if gate.better_than is not None:
        gain = _gain(stage, gate, own.less(found[gate.set][gate.better_than][metric]))
        if gain.low is not None and gain.low > gate.by:
            return None
        more = f" by more than {gate.by:g}" if gate.by else ""
        return f"{what} is better than {gate.better_than}'s by {_shown(gain)}; asked: surely better{more}"
    shown = _shown(own.interval())
    if gate.at_least is not None and not own.value >= gate.at_least:
        return f"{what} is {shown}; asked: at least {gate.at_least:g}"
    if gate.at_most is not None and not own.value <= gate.at_most:
        return f"{what} is {shown}; asked: at most {gate.at_most:g}"
    return None


def _judged(stage: Evaluation, gate: FigureGate) -> tuple[str, Better]:
    """The figure that a gate judges, and the direction in which it is better."""
    measure = stage.sets[gate.set].measure
    figures = MEASURES[measure.name].figures(measure)
    metric = gate.metric or next(iter(figures))
    return metric, figures[metric]


def _gain(stage: Evaluation, gate: FigureGate, difference: Interval) -> Interval:
    """The difference, such that more is better."""
    _, better = _judged(stage, gate)
    if better == "higher":
        return difference
    low, high = (None if end is None else -end for end in (difference.high, difference.low))
    return Interval(-difference.value, low, high)


def _shown(found: Interval) -> str:
    if found.low is None or found.high is None:
        return f"{found.value:.4g} (one row: no interval)"
    return f"{found.value:.4g} ({found.low:.4g} to {found.high:.4g})"
