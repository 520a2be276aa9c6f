"""A scatter plot with a name at every point, as an SVG file that stands alone, light or dark."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 130, 34, 48
LINE = 13
"""Height of a name."""
STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}.grid{stroke:#ccc;stroke-width:.6}"
    ".spread{stroke:#2563eb;stroke-width:1.5}circle{fill:#2563eb}.lead{stroke:#999;stroke-width:.6}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}circle{fill:#7aa7ff}.spread{stroke:#7aa7ff}}"
)


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
    x = _Scale(xs, LEFT, WIDTH - RIGHT, log=log)
    y = _Scale(ys, HEIGHT - BOTTOM, TOP, log=False)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="title" x="{LEFT}" y="18">{escape(title)}</text>',
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_title)}</text>',
        f'<text transform="translate(14 {HEIGHT / 2:.0f}) rotate(-90)" text-anchor="middle">{escape(y_title)}</text>',
    ]
    for tick in _powers(xs) if log else _ticks(xs):
        parts.append(f'<line class="grid" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{_short(tick)}</text>')
    for tick in _ticks(ys):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    at = _apart([(x(dot.x), y(dot.y)) for dot in dots])
    for dot, place in zip(dots, at, strict=True):
        cx, cy = x(dot.x), y(dot.y)
        low, high = y(dot.low), y(dot.high)
        parts.append(f'<line class="spread" x1="{cx:.1f}" x2="{cx:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(f'<line class="lead" x1="{cx:.1f}" y1="{cy:.1f}" x2="{cx + 9:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<circle cx="{cx:.1f}" cy="{cy:.1f}" r="3.5"/>')
        parts.append(f'<text x="{cx + 11:.1f}" y="{place + 4:.1f}">{escape(dot.name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


class _Scale:
    """Data -> pixels, with a margin at both ends."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool) -> None:
        self._of = math.log10 if log else float
        low, high = self._of(min(values)), self._of(max(values))
        pad = 0.06 * (high - low) or 0.5
        self._low, self._start = low - pad, start
        self._factor = (end - start) / (high - low + 2 * pad)

    def __call__(self, value: float) -> float:
        return self._start + (self._of(value) - self._low) * self._factor


def _apart(points: Sequence[tuple[float, float]]) -> list[float]:
    """Heights of the names, moved down where one near by would cover them."""
    placed: list[tuple[float, float]] = []
    found = dict.fromkeys(range(len(points)), 0.0)
    for index in sorted(found, key=lambda index: points[index][1]):
        x, height = points[index]
        near = sorted(other for at, other in placed if abs(at - x) < RIGHT)
        for other in near:
            if abs(other - height) < LINE:
                height = other + LINE
        placed.append((x, height))
        found[index] = height
    return [found[index] for index in range(len(points))]


def _powers(values: Sequence[float]) -> list[float]:
    low, high = math.ceil(math.log10(min(values))), math.floor(math.log10(max(values)))
    return [10.0**power for power in range(low, high + 1)]


def _ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, about six, within the values."""
    low, high = min(values), max(values)
    if low == high:
        return [low]
    rough = (high - low) / 6
    size = min((10 ** math.floor(math.log10(rough)) * factor for factor in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    return [round(index * size, 10) for index in range(math.ceil(low / size), math.floor(high / size) + 1)]


def _short(value: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
