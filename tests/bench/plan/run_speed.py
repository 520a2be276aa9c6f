"""Seconds of a step as `plan` predicts them and as they are, over methods, lengths, batches, precisions and settings.

    PYTHONPATH=tests/bench .venv/bin/python -m plan.run_speed [--cells 24] [--clock wall] [--out FILE]

One thread a process; the machine's rates are measured first, where they were not before. It goes on where it was
stopped: a configuration that FILE has is not measured again. On a machine that others use, `--clock cpu` compares the
processor's time. SmolLM2-135M and a 350M model, random weights, no distribution.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from harness import Arm, machine, run_arm
from plan.configurations import Configuration, configurations
from training import VARIABLES
from triptych.measure.machine_speed import measure_apart
from triptych.models.sizes import model_sizes
from triptych.plan import local
from triptych.plan.rates import Rates, kept_rates
from triptych.plan.speed import UsualRow, stage_speed
from triptych.train.allocator import allocator_variables

TARGET_ERROR, TARGET_RANK = 0.15, 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, help="so many configurations")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--out", type=Path, default=Path("build/bench/plan-speed.json"))
    options = parser.parse_args()
    rates = kept_rates() or measure_apart()
    alone = [one for one in configurations() if one.ranks == 1][: options.cells]
    done = read(options.out)
    for configuration in alone:
        if configuration.key not in done:
            done[configuration.key] = {"of": asdict(configuration)} | measured(configuration)
            write(options.out, done)
            print(f"{configuration.name}: {done[configuration.key]}", file=sys.stderr, flush=True)
    show([(one, predicted(one, rates), done[one.key][f"{options.clock}_seconds"]) for one in alone])


def predicted(configuration: Configuration, rates: Rates) -> float:
    """Seconds of a step of full rows."""
    recipe = configuration.recipe()
    sizes = model_sizes(recipe.model)
    return stage_speed(recipe, "stage", sizes, local(), "single", rates, row=UsualRow(fill=1.0)).step_seconds


def measured(configuration: Configuration) -> dict[str, float]:
    """In a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder, "job.json")
        job.write_text(json.dumps(asdict(configuration)))
        env = VARIABLES | allocator_variables() | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-m", "plan.measure_speed", str(job)]
        return run_arm(Arm(configuration.name, command, env, 1800))


def read(file: Path) -> dict[str, Any]:
    """What was measured before, by the configurations' keys."""
    if not file.is_file():
        return {}
    cells: dict[str, Any] = json.loads(file.read_text())["cells"]
    return cells


def write(file: Path, cells: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    staged = file.with_suffix(".new")
    staged.write_text(json.dumps({"machine": machine(), "cells": cells}, indent=2) + "\n")
    staged.replace(file)


def rank_correlation(one: list[float], other: list[float]) -> float:
    """Spearman's; no two values are equal."""
    ranks = [np.argsort(np.argsort(values)) for values in (one, other)]
    return float(np.corrcoef(ranks)[0, 1])


def show(rows: list[tuple[Configuration, float, float]]) -> None:
    table = Table("configuration", "predicted s", "actual s", "error", title="Seconds of a step")
    errors = []
    for configuration, expected, actual in rows:
        errors.append(expected / actual - 1)
        table.add_row(configuration.name, f"{expected:.2f}", f"{actual:.2f}", f"{errors[-1]:+.1%}")
    console = Console()
    console.print(table)
    error = statistics.mean(map(abs, errors))
    rank = rank_correlation([row[1] for row in rows], [row[2] for row in rows])
    met = "met" if error <= TARGET_ERROR and rank >= TARGET_RANK else "MISSED"
    console.print(
        f"{len(rows)} configurations: mean error {error:.1%}, worst {max(map(abs, errors)):.1%}, "
        f"rank correlation {rank:.3f}; targets {TARGET_ERROR:.0%} and {TARGET_RANK}: {met}"
    )


if __name__ == "__main__":
    main()
