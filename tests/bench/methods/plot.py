"""A scatter plot with a name at every point, as an SVG file that stands alone, light or dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from svg import Panel, Scale, apart, axes, opening, ticks

WIDTH, HEIGHT = 720, 420
NAMES = 130
"""Width of the names on the right of the field."""
FIELD = Panel(left=64, right=WIDTH - NAMES, top=34, bottom=HEIGHT - 48, height=HEIGHT)


@dataclass(frozen=True)
class Dot:
    """One method: x, and the least, mean and greatest y."""

    name: str
    x: float
    low: float
    y: float
    high: float


def scatter(title: str, x_title: str, y_title: str, dots: Sequence[Dot], *, log: bool) -> str:
    """`log`: the horizontal axis has a logarithmic scale."""
    xs, ys = [dot.x for dot in dots], [value for dot in dots for value in (dot.low, dot.high)]
    x = Scale(xs, FIELD.left, FIELD.right, log=log)
    y = Scale(ys, FIELD.bottom, FIELD.top, log=False)
    marks = [(tick, _short(tick)) for tick in (_powers(xs) if log else ticks(xs))]
    parts = [*opening(title, WIDTH, HEIGHT, FIELD.left), *axes(FIELD, (x_title, y_title), x, marks, y, ys)]
    at = apart([(x(dot.x), y(dot.y)) for dot in dots], NAMES)
    for dot, place in zip(dots, at, strict=True):
        cx, cy = x(dot.x), y(dot.y)
        low, high = y(dot.low), y(dot.high)
        parts.append(f'<line class="spread" x1="{cx:.1f}" x2="{cx:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<line class="lead" x1="{cx:.1f}" y1="{cy:.1f}" x2="{cx + 9:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3.5"/>')
        parts.append(f'<text x="{cx + 11:.1f}" y="{place + 4:.1f}">{escape(dot.name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _powers(values: Sequence[float]) -> list[float]:
    low, high = math.ceil(math.log10(min(values))), math.floor(math.log10(max(values)))
    return [10.0**power for power in range(low, high + 1)]


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
