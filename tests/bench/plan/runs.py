"""What is predicted of whole runs beside what they take: memory of a worker and tokens a second, stage by stage.

    PYTHONPATH=tests/bench .venv/bin/python -m plan.runs [--minutes 90] [--jobs 1] [--runs NAME ...] [--out FILE]

Each is a `triptych run` with a registry of its own, so that no run corrects the next one's prediction. Targets, once a
run has read its data: mean error of memory 7%, worst 15%, every peak inside its interval, no interval wider than 20% to
either side. What `plan` says of the recipe alone is printed too. It goes on where it was stopped; a run whose entry is
removed from the file is made again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from harness import machine
from plan.run_data import write_data
from plan.run_recipes import RUNS
from triptych.observe.planned import FILE, Compared, compare

MEAN, WORST, WIDEST = 0.07, 0.15, 0.20
Stages = dict[str, Any]
"""Stage -> its plan.json."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=90.0, help="no run starts later")
    parser.add_argument("--jobs", type=int, default=1, help="runs at once; their speeds are then of a shared machine")
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("build/bench/plan-runs.json"))
    given = parser.parse_args()
    end = time.monotonic() + 60 * given.minutes
    done: dict[str, Stages] = json.loads(given.out.read_text())["runs"] if given.out.is_file() else {}

    def make(name: str) -> None:
        if name in done or time.monotonic() > end:
            return
        started = time.monotonic()
        found = whole_run(name)
        with writing:
            done[name] = found
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps({"machine": machine(), "jobs": given.jobs, "runs": done}, indent=1) + "\n")
            print(f"{name}: {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)

    writing = threading.Lock()
    with ThreadPoolExecutor(given.jobs) as pool:
        list(pool.map(make, given.runs))
    show({name: done[name] for name in RUNS if name in done})


def whole_run(name: str) -> Stages:
    """Run a recipe in a folder of its own; RuntimeError with what it wrote where it fails."""
    dtype, stages = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        recipe = {"name": "run", "model": {"base": "smollm2-135m-instruct", "dtype": dtype}, "stages": stages}
        Path(folder, "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [str(Path(sys.executable).parent / "triptych"), "run", "recipe.yaml", "--set", "storage.runs=runs"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise RuntimeError(f"{name}: exit code {ended.returncode}\n{ended.stderr[-3000:]}")
        return {stage: json.loads(Path(folder, "runs/run/stages", stage, FILE).read_text()) for stage in stages}


def show(runs: dict[str, Stages]) -> None:
    """One line a stage, and whether the targets are met."""
    headings = ("run", "stage", "recipe", "data", "interval", "used", "ratio", "inside", "tokens/s", "made", "ratio")
    table = Table(*headings)
    memories: list[Compared] = []
    for name, stages in runs.items():
        for stage, found in stages.items():
            memory, speed = compare(found["predicted"], found["actual"])
            memories.append(memory)
            _, predicted, interval, used, ratio = memory.cells()
            before = f"{found['before_data']['peak_bytes']['expected'] / 2**20:,.0f} MiB"
            cells = (before, predicted, interval, used, ratio, yes(inside(memory)))
            table.add_row(name, stage, *cells, *speed_cells(speed))
    Console(width=150).print(table, verdict(memories))


def speed_cells(speed: Compared) -> tuple[str, str, str]:
    _, predicted, _, made, ratio = speed.cells()
    return predicted, made, ratio


def verdict(memories: Iterable[Compared]) -> str:
    found = list(memories)
    errors = [abs(one.ratio - 1) for one in found if one.ratio]
    width = max(((one.high or 0) - (one.low or 0)) / 2 / one.predicted for one in found)
    mean, worst, outside = sum(errors) / len(errors), max(errors), sum(not inside(one) for one in found)
    return (
        f"{len(found)} stages: mean error {mean:.1%} ({met(mean <= MEAN)}), worst {worst:.1%} ({met(worst <= WORST)}), "
        f"outside {outside} ({met(outside == 0)}), widest interval ±{width:.0%} ({met(width <= WIDEST)})"
    )


def inside(one: Compared) -> bool:
    return one.low is not None and one.high is not None and one.low <= (one.actual or 0) <= one.high


def yes(value: bool) -> str:
    return "yes" if value else "NO"


def met(value: bool) -> str:
    return "met" if value else "MISSED"


if __name__ == "__main__":
    main()
