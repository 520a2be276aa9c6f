"""Fill the table of methods, cell by cell; it goes on where it was stopped.

    PYTHONPATH=tests/bench .venv/bin/python -m methods.run [--minutes 100] [--data sst2] [--methods lora ia3]

SmolLM2-135M-Instruct in bfloat16, two threads, eight rows a step, one process a cell. A method is tried with three
learning rates of its own range and one seed, and runs with all seeds at the best of them. `--beside-peft` runs peft's
own implementation of some methods in turn with ours. A cell whose line is removed from the file is measured again.
"""

import argparse
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from harness import Arm, machine, run_arm
from methods import measure_peft
from methods.cells import PEFT, Cell, Key, Results, code_version, read, write
from methods.measure import Job
from methods.settings import LEVELS, method_at, method_names
from methods.table import EXAMPLE, publish
from methods.tasks import TASKS, Prepared, prepare
from training import ROOT, VARIABLES, base_folder

REFUSALS = ("triptych.errors.UserError", "triptych.errors.RunError")
"""A method that the model has no place for, or that does not learn, is a result; everything else ends the benchmark."""
SCRATCH = ROOT / "build" / "bench" / "methods"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=100.0, help="no cell starts that would end later")
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=method_names(), default=method_names())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=sys.maxsize, help="at most so many")
    parser.add_argument("--beside-peft", action="store_true", help="the comparison with peft, and nothing else")
    parser.add_argument("--out", type=Path, default=EXAMPLE / "results.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cell's process ends with this one
    end = time.monotonic() + 60 * options.minutes
    model, seconds = base_folder(), dict.fromkeys(TASKS, 0.0)
    prepared = {data: prepare(data, model, SCRATCH) for data in options.data}
    for _ in range(options.cells):
        key = next(_waiting(options, prepared), None)
        if key is None or time.monotonic() + seconds[key.data] > end:
            break
        started = time.monotonic()
        cell = run(key, prepared[key.data], model)
        seconds[key.data] = max(seconds[key.data], time.monotonic() - started)
        write(options.out, [*(other for other in read(options.out) if other.key != key), cell])
        _show(cell, time.monotonic() - started)
    if options.out == EXAMPLE / "results.json":
        publish()


def _waiting(options: argparse.Namespace, prepared: dict[str, Prepared]) -> Iterator[Key]:
    """The cells that are missing now, those to be measured next first."""
    cells = read(options.out)
    for data in options.data:
        results = Results(cells, data, TASKS[data], prepared[data].digest)
        for method in options.methods:
            if not options.beside_peft:
                yield from results.missing(method, options.seeds)
            elif method in measure_peft.METHODS and TASKS[data].kind == "texts":
                yield from results.missing_beside(method, options.seeds)


def run(key: Key, prepared: Prepared, model: Path) -> Cell:
    """Measure a cell."""
    method, rate = method_at(key.method, key.level)
    job = Job(key.data, str(model), str(prepared.train), str(prepared.heldout), method, rate, key.seed)
    module = "methods.measure_peft" if key.arm == PEFT else "methods.measure"
    command = [sys.executable, "-m", module, str(job.save(SCRATCH / "job.json"))]
    parts = method if isinstance(method, list) else [method]
    try:
        figures, error = run_arm(Arm(key.method, command, VARIABLES, timeout_s=3600)), None
    except RuntimeError as failed:
        figures, error = {}, str(failed).splitlines()[-1]
        if not error.startswith(REFUSALS):
            raise
    return Cell(
        **asdict(key),
        learning_rate=[part.get("lr", rate) for part in parts],
        figures=figures,
        error=error,
        digest=prepared.digest,
        code=code_version(),
        machine=machine(),
    )


def _show(cell: Cell, seconds: float) -> None:
    rates = ", ".join(f"{rate:g}" for rate in cell.learning_rate)
    what = f"{cell.data}, {cell.method} ({cell.arm}), level {cell.level + 1}/{LEVELS} ({rates}), seed {cell.seed}"
    found = {name: round(cell.figures[name], 4) for name in _shown(cell.figures, TASKS[cell.data].figure)}
    print(f"{what}: {cell.error or found}, {seconds:.0f} s", file=sys.stderr, flush=True)


def _shown(figures: dict[str, float], figure: str) -> Sequence[str]:
    return [name for name in (figure, "trainable", "peak GB", "step s", "tokens/s") if name in figures]


if __name__ == "__main__":
    main()
