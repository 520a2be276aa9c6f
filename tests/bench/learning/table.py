"""The table and the plot of the comparison, from its results.json.

PYTHONPATH=tests/bench .venv/bin/python -m learning.table
"""

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from learning.cells import Cell, read
from learning.recipes import PACES
from methods.plot import Dot, scatter

RESULTS = Path(__file__).parent / "results.json"
PLOT = RESULTS.with_name("results.svg")


def show(cells: dict[str, Cell]) -> None:
    """Print a row for the start, and one for each algorithm."""
    heads = ("", "seeds", "judge, mean", "of each seed", "± of a seed", "score", "distinct-2", "steps", "minutes")
    table = Table(*heads)
    if "start" in cells:
        table.add_row("SFT", *_row([cells["start"]]))
    for algorithm in PACES:
        if own := of_algorithm(cells, algorithm):
            table.add_row(algorithm, *_row(own))
    Console(width=140).print(table)


def of_algorithm(cells: dict[str, Cell], algorithm: str) -> list[Cell]:
    """An algorithm's cells, by seed."""
    return sorted((cell for cell in cells.values() if cell.algorithm == algorithm), key=lambda cell: cell.name)


def publish() -> None:
    """Draw the plot anew: what was learned from against what was not."""
    cells = read(RESULTS)
    groups = {"SFT": [cells["start"]]} | {name: of_algorithm(cells, name) for name in PACES}
    dots = [_dot(name, own) for name, own in groups.items() if own]
    title = "Six minutes of each algorithm from one SFT policy, mean and range of the seeds"
    PLOT.write_text(scatter(title, "score of the reward model", "VADER's judgement", dots, log=False), encoding="utf-8")


def _dot(name: str, cells: Sequence[Cell]) -> Dot:
    judged = [cell.judge for cell in cells]
    x = statistics.fmean(cell.score for cell in cells)
    return Dot(name, x, min(judged), statistics.fmean(judged), max(judged))


def _row(cells: Sequence[Cell]) -> list[str]:
    mean = statistics.fmean
    minutes = [cell.seconds / 60 for cell in cells]
    return [
        str(len(cells)),
        f"{mean(cell.judge for cell in cells):.3f}",
        ", ".join(f"{cell.judge:.3f}" for cell in cells),
        f"{mean(cell.judge_error for cell in cells):.3f}",
        f"{mean(cell.score for cell in cells):.2f}",
        f"{mean(cell.distinct2 for cell in cells):.2f}",
        f"{mean(cell.steps for cell in cells):g}",
        f"{min(minutes):.1f} - {max(minutes):.1f}",
    ]


if __name__ == "__main__":
    show(read(RESULTS))
    publish()
