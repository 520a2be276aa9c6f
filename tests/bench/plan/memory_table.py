"""How good the predicted memory is: a table, a plot, and the errors of both halves.

    PYTHONPATH=tests/bench .venv/bin/python -m plan.memory_table

Calibrated from the half that is for fitting; the other half never was.
"""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

from methods.plot import Dot, scatter
from plan.cells import Cell, read
from plan.configurations import Configuration
from triptych.measure import traced
from triptych.plan import MemoryRecord, calibrate, estimate, grown, machine_kind
from triptych.plan.machines import Machine, local
from triptych.recipe.method import names_of

OUT = Path(__file__).parent
MEAN, WORST = 0.05, 0.12
"""Errors that are aimed at."""
NAMED = 6
"""Points of the plot that have a name: the worst."""


@dataclass(frozen=True)
class Row:
    """Bytes by which a process outgrows the loaded base."""

    configuration: Configuration
    record: MemoryRecord
    """Measured, and as it was traced."""
    closed: int
    """By the closed form."""
    calibrated: int = 0

    @property
    def error(self) -> float:
        """Of the calibrated prediction, as a share of what was measured."""
        return self.calibrated / self.record.actual - 1


def rows_of(cells: Sequence[Cell], machine: Machine) -> list[Row]:
    """All cells that have figures, calibrated from those that are for fitting."""
    measured = [cell for cell in cells if not cell.error]
    rows = [predicted(cell.of, int(cell.figures["grown"]), machine) for cell in track(measured, "predicting")]
    known = [row.record for row in rows if not row.configuration.held_out]
    return [calibrated(row, known) for row in rows]


def predicted(configuration: Configuration, actual: int, machine: Machine) -> Row:
    """A measured configuration beside what `plan` says of it, not calibrated."""
    recipe = configuration.recipe()
    closed, exact = (
        sum(
            grown(role.parts).expected
            for role in estimate(recipe, machine=machine, exact=by_trace, trace=traced).stages["stage"].roles.values()
        )
        for by_trace in (False, True)
    )
    method = names_of(recipe.trained["stage"].roles(recipe.stages)[0].method)
    record = MemoryRecord(machine_kind(machine), method, configuration.strategy, configuration.dtype, exact, actual)
    return Row(configuration, record, closed)


def calibrated(row: Row, known: Sequence[MemoryRecord]) -> Row:
    record = row.record
    factor = calibrate(known, record.machine, record.dtype, record.strategy, record.method).factor
    return Row(row.configuration, record, row.closed, round(record.predicted * factor))


def _print(rows: Sequence[Row]) -> None:
    table = Table(title="MB that a process adds to the loaded base at its peak")
    for column in ("configuration", "half", "measured", "closed form", "traced", "calibrated", "error"):
        table.add_column(column, justify="left" if column in ("configuration", "half") else "right")
    for row in sorted(rows, key=lambda row: row.error):
        amounts = (row.record.actual, row.closed, row.record.predicted, row.calibrated)
        half = "held out" if row.configuration.held_out else "fitted"
        table.add_row(row.configuration.name, half, *(f"{size / 1e6:,.0f}" for size in amounts), f"{row.error:+.1%}")
    Console().print(table, *verdicts(rows), sep="\n")


def verdicts(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name, half in (("fitted", False), ("held out", True)):
        errors = [abs(row.error) for row in rows if row.configuration.held_out == half]
        if errors:
            mean, worst = statistics.mean(errors), max(errors)
            verdict = "met" if mean <= MEAN and worst <= WORST else "MISSED"
            lines.append(f"{name}: {len(errors)} configurations, mean error {mean:.1%}, worst {worst:.1%}: {verdict}")
    return lines


def _plot(rows: Sequence[Row]) -> str:
    worst = sorted(rows, key=lambda row: abs(row.error))[-NAMED:]
    dots = [
        Dot(
            row.record.method if row in worst else "",
            row.record.actual,
            100 * row.error,
            100 * row.error,
            100 * row.error,
        )
        for row in rows
    ]
    return scatter("Predicted memory", "bytes measured at the peak", "error, percent", dots, log=True)


def main() -> None:
    rows = rows_of(read(), local())
    _print(rows)
    (OUT / "memory.svg").write_text(_plot(rows), encoding="utf-8")
    summary = {row.configuration.name: [row.record.actual, row.closed, row.record.predicted] for row in rows}
    (OUT / "memory_predicted.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
