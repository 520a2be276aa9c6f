"""Fill the comparison cell by cell; it goes on where it was stopped.

    PYTHONPATH=tests/bench .venv/bin/python -m learning.run [--only ppo-0 dpo-0] [--out FILE]

Six algorithms, three seeds. Each starts from one SFT policy and one reward model of the film-review example, takes as
many steps as six minutes have room for, and answers the held-out requests, 16 times each. Runs stay in
build/bench/learning, where a cell that was stopped goes on; a cell whose line is removed from the file is measured
again.
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from harness import machine
from learning.cells import measured, read, write
from learning.recipes import PACES, learning, start
from learning.table import RESULTS, publish, show
from training import ROOT, reviews_file

SCRATCH = ROOT / "build" / "bench" / "learning"
SEEDS = 3
CELLS = tuple(f"{algorithm}-{seed}" for seed in range(SEEDS) for algorithm in PACES)
"""Each algorithm once, then each once more."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=CELLS, default=list(CELLS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    SCRATCH.mkdir(parents=True, exist_ok=True)
    reviews_file("prompts.heldout")
    fill("start", start(), options.out)
    for name in options.only:
        algorithm, _, seed = name.rpartition("-")
        fill(name, learning(algorithm, int(seed)), options.out)
    show(read(options.out))
    if options.out == RESULTS:
        publish()


def fill(name: str, recipe: dict[str, Any], out: Path) -> None:
    """Run a cell's recipe, unless the cell is there already and what it registers is not needed."""
    cells = read(out)
    if name in cells and (name != "start" or (SCRATCH / "runs" / recipe["name"]).is_dir()):
        return
    began = time.monotonic()
    run(recipe)
    found = measured(name, SCRATCH / "runs" / recipe["name"], machine())
    write(out, {**cells, name: found})
    said = f"{name}: judge {found.judge:.3f} ± {found.judge_error:.3f}, score {found.score:.3f}, {found.steps} steps"
    print(f"{said}, {time.monotonic() - began:.0f} s in all", file=sys.stderr, flush=True)


def run(recipe: dict[str, Any]) -> None:
    """`triptych run`; RuntimeError with the end of what it wrote where it fails. Stopped, it is stopped by Ctrl-C."""
    file, log = SCRATCH / f"{recipe['name']}.yaml", SCRATCH / f"{recipe['name']}.log"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    command, runs = str(Path(sys.executable).parent / "triptych"), f"storage.runs={SCRATCH / 'runs'}"
    words = [command, "run", str(file), "--set", runs]
    with log.open("ab") as sink:
        process = subprocess.Popen(words, cwd=ROOT, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if code:
        raise RuntimeError(f"{recipe['name']}: exit code {code}\n{log.read_text(errors='replace')[-3000:]}")


if __name__ == "__main__":
    main()
