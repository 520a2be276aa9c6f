"""Parts of a plot as an SVG file that stands alone, light or dark: scales, axes, names beside their points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LINE = 13
"""Height of a name."""
STYLE = (
    "text{font:12px sans-serif;fill:#333}.title{font-weight:bold}.grid{stroke:#ccc;stroke-width:.6}"
    ".spread{stroke:#2563eb;stroke-width:1.5}circle{fill:#2563eb}.lead{stroke:#999;stroke-width:.6}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}.grid{stroke:#444}circle{fill:#7aa7ff}.spread{stroke:#7aa7ff}}"
)


class Scale:
    """Data -> pixels, with a margin at both ends."""

    def __init__(self, values: Sequence[float], start: float, end: float, *, log: bool) -> None:
        self._of = math.log10 if log else float
        low, high = self._of(min(values)), self._of(max(values))
        pad = 0.06 * (high - low) or 0.5
        self._low, self._start = low - pad, start
        self._factor = (end - start) / (high - low + 2 * pad)

    def __call__(self, value: float) -> float:
        return self._start + (self._of(value) - self._low) * self._factor


@dataclass(frozen=True)
class Panel:
    """Edges of the field that data are drawn in, in pixels, and the height of the whole file."""

    left: int
    right: int
    top: int
    bottom: int
    height: int


def opening(title: str, width: int, height: int, left: int) -> list[str]:
    """The beginning of a file, up to its title."""
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<text class="title" x="{left}" y="18">{escape(title)}</text>',
    ]


def axes(
    panel: Panel, titles: tuple[str, str], x: Scale, x_marks: Sequence[tuple[float, str]], y: Scale, ys: Sequence[float]
) -> list[str]:
    """Titles of both axes (x, y), a line and a text at each mark of x, and round numbers along `ys`."""
    middle, low = (panel.left + panel.right) / 2, panel.bottom
    down, aside = panel.height / 2, panel.left - 50
    parts = [
        f'<text x="{middle:.0f}" y="{panel.height - 8}" text-anchor="middle">{escape(titles[0])}</text>',
        f'<text transform="translate({aside} {down:.0f}) rotate(-90)" text-anchor="middle">{escape(titles[1])}</text>',
    ]
    for at, text in x_marks:
        parts.append(f'<line class="grid" x1="{x(at):.1f}" x2="{x(at):.1f}" y1="{panel.top}" y2="{low}"/>')
        parts.append(f'<text x="{x(at):.1f}" y="{low + 16}" text-anchor="middle">{escape(text)}</text>')
    for tick in ticks(ys):
        parts.append(f'<line class="grid" x1="{panel.left}" x2="{panel.right}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text x="{panel.left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>')
    return parts


def apart(points: Sequence[tuple[float, float]], width: float) -> list[float]:
    """Heights of names at most `width` wide, moved down where one near by would cover them."""
    placed: list[tuple[float, float]] = []
    found = dict.fromkeys(range(len(points)), 0.0)
    for index in sorted(found, key=lambda index: points[index][1]):
        x, height = points[index]
        near = sorted(other for at, other in placed if abs(at - x) < width)
        for other in near:
            if abs(other - height) < LINE:
                height = other + LINE
        placed.append((x, height))
        found[index] = height
    return [found[index] for index in range(len(points))]


def ticks(values: Sequence[float]) -> list[float]:
    """Round numbers, about six, within the values."""
    low, high = min(values), max(values)
    if low == high:
        return [low]
    rough = (high - low) / 6
    size = min((10 ** math.floor(math.log10(rough)) * factor for factor in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    return [round(index * size, 10) for index in range(math.ceil(low / size), math.floor(high / size) + 1)]
