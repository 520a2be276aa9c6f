"""Measure the memory of configurations, cell by cell; it goes on where it was stopped. Then print how good `plan` was.

    PYTHONPATH=tests/bench .venv/bin/python -m plan.run_memory [--minutes 60] [--cells 10]

One thread a process. A cell whose line is removed from the file is measured again.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from harness import Arm, run_arm
from kept import code_version
from plan.cells import Cell, read, write
from plan.configurations import Configuration, configurations
from training import VARIABLES
from triptych.train.allocator import allocator_variables

REFUSED = "triptych.errors.UserError"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60.0, help="no configuration starts later")
    parser.add_argument("--cells", type=int, default=sys.maxsize, help="at most so many")
    options = parser.parse_args()
    end, left = time.monotonic() + 60 * options.minutes, options.cells
    for configuration in configurations():
        if configuration.key in {cell.of.key for cell in read()}:
            continue
        if left == 0 or time.monotonic() > end:
            return
        left -= 1
        started = time.monotonic()
        cell = measured(configuration)
        write([*read(), cell])
        shown = cell.error or f"{cell.figures['grown'] / 1e6:,.0f} MB"
        print(f"{configuration.name}: {shown}, {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True)


def measured(configuration: Configuration) -> Cell:
    """In processes of its own, one a rank."""
    values = configuration.values()
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder, "job.json")
        job.write_text(json.dumps(values))
        command = [sys.executable, "-m", "plan.ranks", str(job), f"{folder}/meeting"]
        try:
            own = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.environ["PYTHONPATH"]}
            figures = run_arm(Arm(configuration.name, command, VARIABLES | allocator_variables() | own, 1800))
        except RuntimeError as failed:
            reason = next((line for line in str(failed).splitlines() if line.startswith(REFUSED)), None)
            if reason is None:
                raise
            return Cell(values, {}, reason, code_version())
    return Cell(values, figures, None, code_version())


if __name__ == "__main__":
    main()
