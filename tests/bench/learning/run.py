"""Fill the comparison cell by cell; it goes on where it was stopped.

    PYTHONPATH=tests/bench .venv/bin/python -m learning.run [--only ppo-0 dpo-0] [--minutes 6] [--out FILE]
    PYTHONPATH=tests/bench .venv/bin/python -m learning.run --pace

Six algorithms, three seeds. Each starts from one SFT policy and one reward model of the film-review example, takes as
many steps as six minutes have room for, and answers the held-out requests, 16 times each. Runs stay in
build/bench/learning, where a cell that was stopped goes on; a cell whose line is removed from the file is measured
again, and trained again only where its run is not there. `--pace` measures the seconds of a step instead, which
`learning.settings` holds.
"""

import argparse
import signal
import sys
import time
from pathlib import Path
from typing import Any

from harness import machine
from kept import code_version
from learning.cells import Cell, read, write
from learning.measure import measured
from learning.pace import paces
from learning.plot import publish
from learning.recipes import learning, start
from learning.runs import SCRATCH, folder_of, run
from learning.settings import MINUTES, NAMES, SEEDS
from learning.table import RESULTS, show
from training import reviews_file

CELLS = tuple(f"{algorithm}-{seed}" for seed in range(SEEDS) for algorithm in NAMES)
"""Each algorithm once, then each once more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS), metavar="CELL")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of each algorithm, on a quiet machine")
    parser.add_argument("--out", type=Path, help="file of the cells; by default another one for other minutes")
    parser.add_argument("--pace", action="store_true", help="measure the seconds of a step, and nothing else")
    options = parser.parse_args()
    out: Path = options.out or file_of(options.minutes)
    if others := sorted({cell.minutes for cell in read(out).values()} - {options.minutes}):
        parser.error(f"{out} has cells of {others[0]:g} minutes; allowed: another --out, or --minutes {others[0]:g}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    reviews_file("prompts.heldout")
    fill("start", start(), options.minutes, out)
    if options.pace:
        print(paces(list(NAMES)))
        return
    for name in options.only:
        algorithm, _, seed = name.rpartition("-")
        fill(name, learning(algorithm, int(seed), options.minutes), options.minutes, out)
    show(read(out))
    if out == RESULTS:
        publish()


def file_of(minutes: float) -> Path:
    """The file of the comparison that is published, or one beside the runs."""
    return RESULTS if minutes == MINUTES else SCRATCH / f"results-{minutes:g}min.json"


def fill(name: str, recipe: dict[str, Any], minutes: float, out: Path) -> None:
    """Run a cell's recipe, unless the cell is there already and what it registers is not needed."""
    cells = read(out)
    if name in cells and (name != "start" or folder_of(recipe).is_dir()):
        return
    began = time.monotonic()
    found = measured(name, run(recipe), minutes, code=code_version(), machine=machine())
    out.parent.mkdir(parents=True, exist_ok=True)
    write(out, {**cells, name: found})
    _tell(found, time.monotonic() - began)


def _tell(cell: Cell, seconds: float) -> None:
    said = f"{cell.name}: judge {cell.judge:.3f} ± {cell.judge_error:.3f}, score {cell.score:.3f}, {cell.steps} steps"
    print(f"{said}, {seconds:.0f} s in all", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
