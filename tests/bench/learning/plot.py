"""The plot of the comparison, from its results.json: judge at the end by algorithm, and on the way there.

PYTHONPATH=tests/bench .venv/bin/python -m learning.plot
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from learning.cells import Cell, of_algorithm, read
from learning.settings import MINUTES, NAMES, PACES
from learning.table import RESULTS
from svg import Panel, Scale, apart, axes, opening, ticks

PLOT = RESULTS.with_name("results.svg")
WIDTH, HEIGHT = 1080, 420
LABELS = 100
"""Width of the names at the ends of lines."""
ENDS = Panel(left=64, right=560, top=34, bottom=HEIGHT - 48, height=HEIGHT)
WAY = Panel(left=640, right=WIDTH - LABELS, top=34, bottom=HEIGHT - 48, height=HEIGHT)
COLORS = {"ppo": "#2563eb", "grpo": "#d97706", "rloo": "#059669", "reinforce_pp": "#c026d3"}
TITLE = f"{MINUTES:g} minutes of each algorithm from one SFT policy"


@dataclass(frozen=True)
class Line:
    """Judge of the answers that an algorithm samples while it learns, mean over seeds, by minutes."""

    algorithm: str
    points: Sequence[tuple[float, float]]


def publish() -> None:
    """Draw the plot anew."""
    PLOT.write_text(drawn(read(RESULTS)), encoding="utf-8")


def drawn(cells: dict[str, Cell]) -> str:
    """The plot as SVG; without the way where no cell has one."""
    groups = {"SFT": [cells["start"]]} if "start" in cells else {}
    groups |= {NAMES[name]: own for name in NAMES if (own := of_algorithm(cells, name))}
    lines = [line for name in COLORS if (line := way(name, of_algorithm(cells, name))).points]
    parts = [*opening(TITLE, WIDTH, HEIGHT, ENDS.left), *_ends(groups), *(_way(lines) if lines else [])]
    return "\n".join([*parts, "</svg>", ""])


def way(algorithm: str, cells: Sequence[Cell]) -> Line:
    """The answers of step k are those of the policy after k - 1 steps; time is that of a quiet machine."""
    steps = zip(*(cell.judges for cell in cells if cell.judges), strict=False)
    pace = PACES[algorithm] / 60
    return Line(algorithm, [(done * pace, fmean(judged)) for done, judged in enumerate(steps)])


def _ends(groups: Mapping[str, Sequence[Cell]]) -> list[str]:
    """Each seed as a point, their range as a line, their mean as a bar."""
    judged = [[cell.judge for cell in own] for own in groups.values()]
    ys = [value for own in judged for value in own]
    x = Scale([0, len(groups) - 1], ENDS.left, ENDS.right, log=False)
    y = Scale(ys, ENDS.bottom, ENDS.top, log=False)
    parts = axes(ENDS, ("", "VADER, held-out requests"), x, list(enumerate(groups)), y, ys)
    for place, own in enumerate(judged):
        at, low, high, middle = x(place), y(min(own)), y(max(own)), y(fmean(own))
        parts.append(f'<line class="spread" x1="{at:.1f}" x2="{at:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
        parts.append(_bar(at, middle))
        parts += [f'<circle cx="{at:.1f}" cy="{y(value):.1f}" r="3.5"/>' for value in own]
    return parts


def _bar(x: float, y: float) -> str:
    return f'<line class="spread" x1="{x - 12:.1f}" x2="{x + 12:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _way(lines: Sequence[Line]) -> list[str]:
    """A line an algorithm that samples, with its name at the end."""
    points = [point for line in lines for point in line.points]
    ys = [value for _, value in points]
    x = Scale([0, max(MINUTES, *(at for at, _ in points))], WAY.left, WAY.right, log=False)
    y = Scale(ys, WAY.bottom, WAY.top, log=False)
    marks = [(tick, f"{tick:g}") for tick in ticks([0, MINUTES])]
    parts = axes(WAY, ("minutes of training", "VADER, answers that are learned from"), x, marks, y, ys)
    lasts = [(x(line.points[-1][0]), y(line.points[-1][1])) for line in lines]
    for line, (at, height), place in zip(lines, lasts, apart(lasts, LABELS), strict=True):
        color, name = COLORS[line.algorithm], NAMES[line.algorithm]
        path = " ".join(f"{x(minutes):.1f},{y(value):.1f}" for minutes, value in line.points)
        parts.append(f'<polyline points="{path}" style="fill:none;stroke:{color};stroke-width:1.8"/>')
        parts.append(f'<line class="lead" x1="{at:.1f}" y1="{height:.1f}" x2="{at + 9:.1f}" y2="{place:.1f}"/>')
        parts.append(f'<text x="{at + 11:.1f}" y="{place + 4:.1f}" style="fill:{color}">{name}</text>')
    return parts


if __name__ == "__main__":
    publish()
