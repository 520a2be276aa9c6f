"""The table of the comparison, from its results.json.

PYTHONPATH=tests/bench .venv/bin/python -m learning.table [FILE]
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from learning.cells import Cell, of_algorithm, read
from learning.settings import NAMES, texts_of

RESULTS = Path(__file__).parent / "results.json"
HEADS = (
    "",
    "seeds",
    "judge",
    "s.d. of seeds",
    "over SFT",
    "score",
    "distinct-2",
    "KL",
    "steps",
    "answers or pairs",
    "seconds",
)
NOTHING = "–"
mean = statistics.fmean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=RESULTS)
    show(read(parser.parse_args().file))


def show(cells: dict[str, Cell]) -> None:
    """Print a row for the start, one for each algorithm, and where they were measured."""
    table = Table(*HEADS, caption="± standard error; KL: nats an answer, of the policy that sampled the last step")
    for row in rows_of(cells):
        table.add_row(*row)
    console = Console(width=140)
    console.print(table)
    machines = {f"{cell.machine['cpu']}, {cell.machine['cores']} cores" for cell in cells.values() if cell.machine}
    console.print(f"measured on {'; '.join(sorted(machines))}", highlight=False)
    if len(starts := {cell.start for cell in cells.values() if cell.start}) > 1:
        console.print(f"not comparable: cells start from {len(starts)} SFT policies", highlight=False)


def rows_of(cells: dict[str, Cell]) -> list[list[str]]:
    """The table's rows as text."""
    first = cells.get("start")
    groups = {NAMES[name]: own for name in NAMES if (own := of_algorithm(cells, name))}
    rows = [["SFT", *_row([first], None)]] if first else []
    return rows + [[name, *_row(own, first)] for name, own in groups.items()]


def error_of(cells: Sequence[Cell]) -> float:
    """Standard error of the mean judge: of the seeds' spread, but no less than that of the answers they sampled."""
    of_answers = math.hypot(*(cell.judge_error for cell in cells)) / len(cells)
    if len(cells) == 1:
        return of_answers
    return max(of_answers, statistics.stdev(cell.judge for cell in cells) / math.sqrt(len(cells)))


def gain(cells: Sequence[Cell], start: Cell) -> tuple[float, float]:
    """Mean judge over the start's, and its standard error."""
    return mean(cell.judge for cell in cells) - start.judge, math.hypot(error_of(cells), start.judge_error)


def _row(cells: Sequence[Cell], start: Cell | None) -> list[str]:
    judged = [cell.judge for cell in cells]
    kls = [cell.kls[-1] for cell in cells if cell.kls]
    texts = [texts_of(cell.algorithm, cell.steps) for cell in cells if cell.steps]
    trained = [cell.seconds for cell in cells if cell.steps]
    return [
        str(len(cells)),
        f"{mean(judged):.3f} ± {error_of(cells):.3f}",
        f"{statistics.stdev(judged):.3f}" if len(cells) > 1 else NOTHING,
        "{:+.3f} ± {:.3f}".format(*gain(cells, start)) if start else NOTHING,
        f"{mean(cell.score for cell in cells):.2f}",
        f"{mean(cell.distinct2 for cell in cells):.3f}",
        f"{mean(kls):.2f}" if kls else NOTHING,
        f"{mean(cell.steps for cell in cells):g}" if texts else NOTHING,
        f"{mean(texts):,g}" if texts else NOTHING,
        f"{min(trained):.0f} - {max(trained):.0f}" if trained else NOTHING,
    ]


if __name__ == "__main__":
    main()
