"""Fill the table of methods, cell by cell; it goes on where it was stopped.

    PYTHONPATH=tests/bench .venv/bin/python -m methods.run [--minutes 100] [--data sst2] [--methods lora ia3]

SmolLM2-135M-Instruct in bfloat16, one process and one thread a cell, as many cells at once as there are cores. A method
is tried with three learning rates of its own range and one seed, and runs with all seeds at the best of them; for some
methods peft's own implementation runs beside ours. How long a step takes is measured apart, by `--timed`: a few steps
with all cores, one cell after another. A cell whose line is removed from the file is measured again.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict
from pathlib import Path

from harness import Arm, machine, run_arm, stopped_with_us
from kept import code_version
from methods import measure_peft
from methods.cells import PEFT, TIMED, Cell, Key, Results, read, write
from methods.measure import Job
from methods.settings import LEVELS, method_at, method_names
from methods.table import EXAMPLE, publish
from methods.tasks import TASKS, Prepared, prepare
from training import ROOT, THREADS, VARIABLES, base_folder

REFUSALS = ("triptych.errors.UserError", "triptych.errors.RunError")
"""A method that the model has no place for, or that does not learn, is a result; everything else ends the benchmark."""
SCRATCH = ROOT / "build" / "bench" / "methods"
TIMED_STEPS, TIMED_ROUNDS = 40, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=100.0, help="no cell starts that would end later")
    parser.add_argument("--data", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--methods", nargs="+", choices=method_names(), default=method_names())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--cells", type=int, default=sys.maxsize, help="at most so many")
    parser.add_argument("--timed", action="store_true", help="how long a step takes, and nothing else")
    parser.add_argument("--out", type=Path, default=EXAMPLE / "results.json")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cells' processes end with this one
    fill(options)
    if options.out == EXAMPLE / "results.json":
        publish()


def fill(options: argparse.Namespace) -> None:
    """Run what is missing, several cells at once, until nothing is or time is up."""
    end = time.monotonic() + 60 * options.minutes
    model, left = base_folder(), options.cells
    seconds = dict.fromkeys(TASKS, 0.0)  # of the longest cell
    prepared = {data: prepare(data, model, SCRATCH) for data in options.data}
    running: dict[Future[Cell], tuple[Key, float]] = {}
    cores = len(os.sched_getaffinity(0))
    at_once, threads = (1, THREADS) if options.timed else (cores, 1)
    with ThreadPoolExecutor(at_once) as pool, stopped_with_us():
        while True:
            busy = {key for key, _ in running.values()}
            waiting = (key for key in _waiting(options, prepared) if key not in busy)
            while left and len(running) < at_once and (key := next(waiting, None)) is not None:
                if time.monotonic() + seconds[key.data] > end:
                    break
                running[pool.submit(run, key, prepared[key.data], model, threads)] = key, time.monotonic()
                left -= 1
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key, started = running.pop(future)
                cell, took = future.result(), time.monotonic() - started
                seconds[key.data] = max(seconds[key.data], took)
                write(options.out, [*(other for other in read(options.out) if other.key != key), cell])
                _show(cell, took)


def _waiting(options: argparse.Namespace, prepared: dict[str, Prepared]) -> Iterator[Key]:
    """The cells that are missing now, those to be measured next first: peft's own come last."""
    cells = read(options.out)
    for data in options.data:
        results = Results(cells, data, TASKS[data], prepared[data].digest)
        peer = [m for m in options.methods if m in measure_peft.METHODS and TASKS[data].kind == "texts"]
        if options.timed:
            for method in options.methods:
                yield from results.missing_timed(method, TIMED_ROUNDS, beside_peft=method in peer)
            continue
        for method in options.methods:
            yield from results.missing(method, options.seeds)
        for method in peer:
            yield from results.missing_beside(method, options.seeds)


def run(key: Key, prepared: Prepared, model: Path, threads: int) -> Cell:
    """Measure a cell."""
    method, rate = method_at(key.method, key.level)
    timed = key.arm in TIMED.values()
    job = Job(
        data=key.data,
        model=str(model),
        train=str(prepared.train),
        heldout=str(prepared.heldout),
        method=method,
        learning_rate=rate,
        seed=0 if timed else key.seed,
        only_steps=TIMED_STEPS if timed else None,
    )
    module = "methods.measure_peft" if key.arm in (PEFT, TIMED[PEFT]) else "methods.measure"
    file = SCRATCH / f"job-{key.method.replace(' ', '')}-{key.level}-{key.seed}-{key.arm.replace(' ', '')}.json"
    command = [sys.executable, "-m", module, str(job.save(file))]
    parts = method if isinstance(method, list) else [method]
    try:
        arm = Arm(key.method, command, VARIABLES | {"OMP_NUM_THREADS": str(threads)}, timeout_s=3600)
        figures, error = run_arm(arm), None
    except RuntimeError as failed:
        figures, error = {}, str(failed).splitlines()[-1]
        if not error.startswith(REFUSALS):
            raise
    finally:
        file.unlink()
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
