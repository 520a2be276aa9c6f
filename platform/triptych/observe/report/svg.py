"""Charts as inline SVG, readable without scripts; a script adds the values under the pointer."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from triptych.observe.report.series import Chart, Point, Series

WIDTH, HEIGHT = 380, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 8, 24
COLORS = 8
"""Hues of the style sheet, `--c0` to `--c7`."""


class _Scale:
    """Linear scale from data to pixels on one axis."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high = low, high
        self._start, self._factor = start, (end - start) / (high - low)

    def __call__(self, value: float) -> float:
        return self._start + (value - self.low) * self._factor


def draw(chart: Chart) -> str:
    """The chart as one `<svg>` element."""
    shown = _stacked(chart.series) if chart.kind == "stack" else chart.series
    x, y = _scales(chart, shown)
    marks = {"line": _lines, "band": _band, "stack": _areas}[chart.kind](shown, x, y)
    axes = _axes(x, y, steps=True)
    label = f"{chart.title}, steps {number(x.low)} to {number(x.high)}"
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">{axes}{marks}'
        f'<line class="cursor" x1="0" x2="0" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}" visibility="hidden"/></svg>'
    )


def hover_data(chart: Chart) -> dict[str, Any]:
    """Data for the page's script: pixel and values at each step."""
    x, _ = _scales(chart, _stacked(chart.series) if chart.kind == "stack" else chart.series)
    steps = sorted({step for series in chart.series for step, _ in series.points})
    values = [dict(series.points) for series in chart.series]
    return {
        "width": WIDTH,
        "names": [series.name for series in chart.series],
        "points": [
            [round(x(step), 1), number(step), [number(at[step]) if step in at else None for at in values]]
            for step in steps
        ],
    }


def bars(title: str, edges: Sequence[float], counts: Sequence[float], names: Sequence[str] | None = None) -> str:
    """A histogram as one `<svg>` element; bars left of zero have their own hue.

    Args:
        edges: ascending, one more than counts.
        names: of the bars; None: their edges.
    """
    names = names or [f"{number(low)} to {number(high)}" for low, high in pairwise(edges)]
    x = _Scale(edges[0], edges[-1], _LEFT, WIDTH - _RIGHT)
    y = _Scale(0.0, 1.06 * max(max(counts), 1.0), HEIGHT - _BOTTOM, _TOP)
    marks = "".join(
        f'<rect class="bar" style="--c:var(--c{0 if low + high >= 0 else 1})" x="{x(low) + 0.5:.1f}" '
        f'y="{y(count):.1f}" width="{max(x(high) - x(low) - 1, 0.5):.1f}" height="{y(0) - y(count):.1f}">'
        f"<title>{escape(name)}: {number(count)}</title></rect>"
        for (low, high), count, name in zip(pairwise(edges), counts, names, strict=True)
    )
    axes = _axes(x, y, steps=False)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{axes}{marks}</svg>'


def cells(title: str, rows: Mapping[str, Mapping[int, float]]) -> str:
    """A heat map as one `<svg>` element: a row for each name, a column for each number."""
    left, row = 86, (HEIGHT - _TOP - _BOTTOM) / max(len(rows), 1)
    columns = sorted({column for values in rows.values() for column in values})
    x = _Scale(columns[0], columns[-1] + 1, left, WIDTH - _RIGHT)
    most = max((value for values in rows.values() for value in values.values()), default=0) or 1
    marks = "".join(
        f'<rect class="bar" style="--c:var(--c0);opacity:{value / most:.2f}" x="{x(column):.1f}" '
        f'y="{_TOP + index * row:.1f}" width="{x(column + 1) - x(column) - 0.5:.1f}" height="{row - 1:.1f}">'
        f"<title>{escape(name)} {column}: {number(value)}</title></rect>"
        for index, (name, values) in enumerate(rows.items())
        for column, value in values.items()
    )
    names = "".join(
        f'<text class="tick" x="{left - 6}" y="{_TOP + (index + 0.5) * row + 3.5:.1f}" text-anchor="end">'
        f"{escape(name)}</text>"
        for index, name in enumerate(rows)
    )
    numbers = "".join(
        f'<text class="tick" x="{x(t + 0.5):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{number(t)}</text>'
        for t in ticks(x.low, x.high, 6)
        if t == int(t) and t < x.high
    )
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{names}{numbers}{marks}</svg>'


def ticks(low: float, high: float, count: int) -> list[float]:
    """Round numbers within [low, high], about `count` of them."""
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    size = min((magnitude * factor for factor in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    first = math.ceil(low / size - 1e-9)
    return [round(index * size, 12) for index in range(first, math.floor(high / size + 1e-9) + 1)]


def number(value: float) -> str:
    """Short text of a number: at most four significant digits."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 1e6 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    if abs(value) >= 1e4:
        return f"{value / 1000:.4g}k"
    return f"{value:.4g}"


def _axes(x: _Scale, y: _Scale, *, steps: bool) -> str:
    """Grid lines and numbers; `steps`: whole numbers only on the horizontal axis."""
    rows = (
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 6}" y="{y(t) + 3.5:.1f}" text-anchor="end">{number(t)}</text>'
        for t in ticks(y.low, y.high, 5)
    )
    columns = (
        f'<text class="tick" x="{x(t):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{number(t)}</text>'
        for t in ticks(x.low, x.high, 6)
        if not steps or t == int(t)
    )
    return "".join([*rows, *columns])


def _scales(chart: Chart, shown: Sequence[Series]) -> tuple[_Scale, _Scale]:
    steps = [step for series in shown for step, _ in series.points]
    values = [value for series in shown for _, value in series.points]
    if chart.kind == "band" and len(shown) == 2:
        spread = dict(shown[1].points)
        values = [v + sign * spread.get(s, 0.0) for s, v in shown[0].points for sign in (-1, 1)]
    if chart.kind == "stack" or chart.from_zero:
        values.append(0.0)
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
    low, high = (0.0 if 0 <= low < pad + 0.3 * high else low - pad), high + pad
    first, last = min(steps), max(steps)
    if first == last:
        first, last = first - 1, last + 1
    return _Scale(first, last, _LEFT, WIDTH - _RIGHT), _Scale(low, high, HEIGHT - _BOTTOM, _TOP)


def _stacked(series: Sequence[Series]) -> list[Series]:
    """Running totals, bottom first, at the steps that the first series has."""
    totals = {step: 0.0 for step, _ in series[0].points}
    layers = []
    for one in series:
        at = dict(one.points)
        totals = {step: total + at.get(step, 0.0) for step, total in totals.items()}
        layers.append(Series(one.name, list(totals.items())))
    return layers


def _lines(series: Sequence[Series], x: _Scale, y: _Scale) -> str:
    return "".join(_line(one.points, index, x, y) for index, one in enumerate(series))


def _line(points: Sequence[Point], color: int, x: _Scale, y: _Scale) -> str:
    step, value = points[-1]
    style = f"--c:var(--c{color % COLORS})"
    end = f'<circle class="end" style="{style}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="3"/>'
    return f'<polyline class="line" style="{style}" points="{_path(points, x, y)}"/>{end}'


def _band(series: Sequence[Series], x: _Scale, y: _Scale) -> str:
    mean = series[0].points
    if len(series) < 2:
        return _line(mean, 0, x, y)
    spread = dict(series[1].points)
    above = [(step, value + spread.get(step, 0.0)) for step, value in mean]
    below = [(step, value - spread.get(step, 0.0)) for step, value in reversed(mean)]
    outline = _path([*above, *below], x, y)
    return f'<polygon class="band" style="--c:var(--c0)" points="{outline}"/>{_line(mean, 0, x, y)}'


def _areas(layers: Sequence[Series], x: _Scale, y: _Scale) -> str:
    floor: list[Point] = [(step, 0.0) for step, _ in layers[0].points]
    areas = []
    for index, layer in enumerate(layers):
        outline = _path([*layer.points, *reversed(floor)], x, y)
        areas.append(f'<polygon class="area" style="--c:var(--c{index % COLORS})" points="{outline}"/>')
        floor = layer.points
    return "".join(areas)


def _path(points: Sequence[Point], x: _Scale, y: _Scale) -> str:
    return " ".join(f"{x(step):.1f},{y(value):.1f}" for step, value in points)
