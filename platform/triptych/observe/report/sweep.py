"""The page of a sweep: its table, learning curves, parallel coordinates, importance and Pareto front."""

import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from triptych import storage
from triptych.observe.report import svg
from triptych.observe.report.series import Chart, Series
from triptych.observe.report.template import filled
from triptych.observe.sweeps import SweepView, TrialView, signed
from triptych.recipe import Dimension
from triptych.recipe.sweep import SweepObjective

_WIDTH, _HEIGHT, _TOP, _BOTTOM, _SIDE = 900, 300, 28, 24, 60


def write_sweep_report(found: SweepView, importance: Mapping[str, float]) -> str:
    """Write `report.html` into the sweep's folder; its path or URL. `importance`: see `tune.importance`."""
    target = storage.join(found.url, "report.html")
    storage.write_bytes(target, render_sweep(found, importance).encode())
    return target


def render_sweep(found: SweepView, importance: Mapping[str, float]) -> str:
    """Render the page; everything that comes from the sweep is escaped."""
    objectives = found.sweep.objectives
    return filled(
        "sweep.html.j2",
        sweep=found,
        objectives=objectives,
        keys=list(found.sweep.space),
        names={trial.name for trial in found.chosen},
        shown=shown,
        curves=[chart for objective in objectives if (chart := curve(found, objective)).series],
        coordinates=parallel_coordinates(found),
        importance=importance_bars(importance),
        front=pareto(found) if len(objectives) > 1 else "",
    )


def shown(value: Any) -> str:
    """Text of a point's value, or of a metric, for a cell of the table."""
    if value is None:
        return "–"
    return (
        svg.number(value) if isinstance(value, float) else str(value) if isinstance(value, str) else json.dumps(value)
    )


def curve(found: SweepView, objective: SweepObjective) -> Chart:
    """Chart of an objective over the steps of every trial."""
    series = [
        Series(
            trial.name,
            [(float(r["step"]), r["metrics"][objective.metric]) for r in trial.reports if _has(r, objective)],
        )
        for trial in found.trials
    ]
    return Chart(objective.metric, f"{objective.mode}imum is best", [one for one in series if one.points])


def parallel_coordinates(found: SweepView) -> str:
    """Parallel coordinates as an `<svg>`: one line a trial through its values and its result; the best are boldest."""
    trials, objective = found.comparable, found.sweep.objectives[0]
    if not trials:
        return ""
    axes = [*found.sweep.space, objective.metric]
    spots = [_SIDE + i * (_WIDTH - 2 * _SIDE) / max(len(axes) - 1, 1) for i in range(len(axes))]
    scores = sorted(signed(objective, trial) for trial in trials)
    parts = []
    for trial in sorted(trials, key=lambda t: -signed(objective, t)):
        heights = [_place(found, axis, trial, scores, objective) for axis in axes]
        points = [
            (x, _TOP + (1 - h) * (_HEIGHT - _TOP - _BOTTOM))
            for x, h in zip(spots, heights, strict=True)
            if h is not None
        ]
        rank = scores.index(signed(objective, trial)) / max(len(scores) - 1, 1)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        style = f"--c:var(--c{0 if trial is found.best else 7});opacity:{1 - 0.75 * rank:.2f}"
        parts.append(
            f'<polyline class="line" style="{style}" points="{path}"><title>{escape(trial.name)}</title></polyline>'
        )
    labels = _axis_labels(found, axes, spots)
    return _svg("parallel coordinates of all trials", f"{labels}{''.join(parts)}")


def importance_bars(importance: Mapping[str, float]) -> str:
    """Bar chart of the keys' importance as an `<svg>`, the most important first; empty if it is not known."""
    if not importance:
        return ""
    ordered = sorted(importance.items(), key=lambda item: -item[1])
    height = 26 * len(ordered) + 8
    bars = "".join(
        f'<text class="tick" x="330" y="{26 * i + 20}" text-anchor="end">{escape(key)}</text>'
        f'<rect class="bar" style="--c:var(--c0)" x="340" y="{26 * i + 8}" width="{500 * share:.1f}" height="16"/>'
        f'<text class="tick" x="{346 + 500 * share:.1f}" y="{26 * i + 20}">{share:.0%}</text>'
        for i, (key, share) in enumerate(ordered)
    )
    return _svg("importance of each key", bars, height)


def pareto(found: SweepView) -> str:
    """Scatter plot of the first two objectives as an `<svg>`, with the Pareto front joined by a line."""
    one, other = found.sweep.objectives[:2]
    places = {t.name: (t.metrics[one.metric], t.metrics[other.metric]) for t in found.comparable}
    if not places:
        return ""
    x, y = (_spread([place[axis] for place in places.values()]) for axis in (0, 1))
    at = {
        name: (
            _SIDE + (a - x[0]) / (x[1] - x[0]) * (_WIDTH - 2 * _SIDE),
            _HEIGHT - _BOTTOM - (b - y[0]) / (y[1] - y[0]) * (_HEIGHT - _TOP - _BOTTOM),
        )
        for name, (a, b) in places.items()
    }
    front = sorted(at[trial.name] for trial in found.front)
    line = " ".join(f"{a:.1f},{b:.1f}" for a, b in front)
    dots = "".join(
        f'<circle class="end" style="--c:var(--c{0 if at[name] in front else 7})" cx="{a:.1f}" cy="{b:.1f}" r="5">'
        f"<title>{escape(name)}: {svg.number(places[name][0])}, {svg.number(places[name][1])}</title></circle>"
        for name, (a, b) in at.items()
    )
    texts = (
        f'<text class="tick" x="{_WIDTH - _SIDE}" y="{_HEIGHT - 6}" text-anchor="end">{escape(one.metric)}: '
        f"{svg.number(x[0])} to {svg.number(x[1])}</text>"
        f'<text class="tick" x="{_SIDE}" y="16">{escape(other.metric)}: {svg.number(y[0])} to {svg.number(y[1])}</text>'
    )
    return _svg(
        "trials by the first two objectives",
        f'{texts}<polyline class="line" style="--c:var(--c0)" points="{line}"/>{dots}',
    )


def _place(
    found: SweepView, axis: str, trial: TrialView, scores: Sequence[float], objective: SweepObjective
) -> float | None:
    """Height of a trial on an axis, from 0 (bottom) to 1; None if it has no such value. The best score is on top."""
    if axis == objective.metric and axis not in found.sweep.space:
        span = scores[-1] - scores[0]
        return 1 - (signed(objective, trial) - scores[0]) / span if span else 1.0
    if axis not in trial.values:
        return None
    return _share(found.sweep.space[axis], trial.values[axis])


def _share(dimension: Dimension, value: Any) -> float:
    if dimension.choice is not None:
        return dimension.choice.index(value) / max(len(dimension.choice) - 1, 1)
    low, high = dimension.edges()
    if dimension.loguniform or dimension.logint:
        return math.log(value / low) / math.log(high / low)
    return float((value - low) / (high - low))


def _axis_labels(found: SweepView, axes: Sequence[str], spots: Sequence[float]) -> str:
    parts = []
    for axis, x in zip(axes, spots, strict=True):
        dimension = found.sweep.space.get(axis)
        parts.append(
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>'
            f'<text class="tick" x="{x:.1f}" y="14" text-anchor="middle">{escape(_short(axis))}</text>'
        )
        if dimension is not None:
            low, high = dimension.edges()[0], dimension.edges()[-1]
            parts.append(
                f'<text class="tick" x="{x:.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(shown(low))}</text>'
                f'<text class="tick" x="{x:.1f}" y="26" text-anchor="middle">{escape(shown(high))}</text>'
            )
    return "".join(parts)


def _short(key: str) -> str:
    return ".".join(key.split(".")[-2:])


def _spread(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _has(report: Mapping[str, Any], objective: SweepObjective) -> bool:
    return math.isfinite(report["metrics"].get(objective.metric, math.nan))


def _svg(label: str, inner: str, height: int = _HEIGHT) -> str:
    return f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label)}">{inner}</svg>'
