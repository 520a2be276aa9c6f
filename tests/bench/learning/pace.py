"""Seconds that a step of each algorithm takes, from a few steps of each; on a machine that does nothing else."""

import statistics
import sys
from collections.abc import Sequence

from learning.measure import seconds_of
from learning.recipes import STAGE, pacing
from learning.runs import run
from triptych.observe.log import read_metrics

STEPS = 3
"""Of each algorithm; the first settles threads and engines, and is not the median of them."""


def paces(algorithms: Sequence[str]) -> dict[str, float]:
    """Median seconds of a step. The start must be there, and a run that is kept is not run again."""
    found = {}
    for algorithm in algorithms:
        folder = run(pacing(algorithm, STEPS))
        seconds = [seconds_of(row) for row in read_metrics(str(folder / "stages" / STAGE))]
        found[algorithm] = round(statistics.median(seconds), 1)
        print(f"{algorithm}: {found[algorithm]} s of {[round(value, 1) for value in seconds]}", file=sys.stderr)
    return found
