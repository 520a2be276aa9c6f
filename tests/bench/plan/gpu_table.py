"""How good `plan` was on a GPU: memory that torch reserved and seconds of a step, as `tests/gpu/run.py` measured them.

    PYTHONPATH=platform:tests/bench .venv/bin/python -m plan.gpu_table [FILE]

Memory is calibrated from the half that is for fitting. The speed of a GPU comes from its data sheet and shares of it
that are assumed for all.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from plan.configurations import Configuration, gpu_configurations
from plan.memory_table import Row, calibrated, predicted, verdicts
from plan.run_speed import rank_correlation
from triptych.models.sizes import model_sizes
from triptych.plan.activations import BYTES
from triptych.plan.machines import GPUS, Machine, machine
from triptych.plan.speed import UsualRow, stage_speed

MEASURED = Path(__file__).parents[2] / "gpu" / "h200.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=MEASURED)
    document = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    words = document["machine"]["device"].lower().split()
    on = machine(next(f"1x{name}" for name in GPUS if name.partition("-")[0] in words))
    by_key = {one.key: one for one in gpu_configurations()}
    found = [r["figures"] for r in document["results"] if r["part"] == "planned" and r["verdict"] == "measured"]
    measured = [(by_key[figures["key"]], figures) for figures in found]
    console = Console(width=200)
    rows = [predicted(one, _grown(one, figures), on) for one, figures in track(measured, "predicting")]
    show_memory(console, rows, measured)
    show_speed(console, measured, on)


def _grown(one: Configuration, figures: dict[str, Any], what: str = "reserved") -> int:
    """Bytes beyond the base's weights: of what a process keeps for good, later configurations find a part there."""
    weights = BYTES[one.dtype] * model_sizes(one.recipe().model).total
    return int(figures[what] + figures["loaded"] - weights)


def show_memory(console: Console, rows: list[Row], measured: list[tuple[Configuration, dict[str, Any]]]) -> None:
    table = Table(title="MB that torch reserves beyond the loaded base")
    for column in ("configuration", "half", "tensors", "reserved", "closed form", "traced", "calibrated", "error"):
        table.add_column(column, justify="left" if column in ("configuration", "half") else "right")
    known = [row.record for row in rows if not row.configuration.held_out]
    rows = [calibrated(row, known) for row in rows]
    tensors = {one.key: _grown(one, figures, "allocated") for one, figures in measured}
    for row in sorted(rows, key=lambda row: row.error):
        amounts = (tensors[row.configuration.key], row.record.actual, row.closed, row.record.predicted, row.calibrated)
        half = "held out" if row.configuration.held_out else "fitted"
        table.add_row(row.configuration.name, half, *(f"{size / 1e6:,.0f}" for size in amounts), f"{row.error:+.1%}")
    off = [abs(row.record.predicted / tensors[row.configuration.key] - 1) for row in rows]
    of_tensors = f"tensors, as traced: mean error {statistics.mean(off):.1%}, worst {max(off):.1%}"
    console.print(table, of_tensors, *verdicts(rows), sep="\n")


def show_speed(console: Console, measured: list[tuple[Configuration, dict[str, Any]]], on: Machine) -> None:
    table = Table("configuration", "predicted s", "actual s", "error", title="Seconds of a step")
    pairs = []
    for one, figures in measured:
        recipe = one.recipe()
        sizes = model_sizes(recipe.model)
        expected = stage_speed(recipe, "stage", sizes, on, "single", row=UsualRow(fill=1.0)).step_seconds
        pairs.append((expected, figures["seconds"]))
        table.add_row(
            one.name, f"{expected:.3f}", f"{figures['seconds']:.3f}", f"{expected / figures['seconds'] - 1:+.1%}"
        )
    error = statistics.mean(abs(expected / actual - 1) for expected, actual in pairs)
    rank = rank_correlation(*map(list, zip(*pairs, strict=True)))
    console.print(table, f"mean error {error:.1%}, rank correlation {rank:.3f}", sep="\n")


if __name__ == "__main__":
    main()
