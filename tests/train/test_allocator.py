"""Processes that train: freed memory serves other tensors."""

import os
import subprocess
import sys

import pytest

from triptych.train.allocator import allocator_variables

ALIVE = 200_000_000
MOST = 1.5
"""Of what is alive; with glibc, keeping what is freed, it is above 2."""
CHURN = f"""
import random, torch
from pathlib import Path

def resident(field):
    return next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if field in l) * 1024

chance, alive = random.Random(0), []
before = resident("VmRSS")
for _ in range(600):
    alive.append(torch.ones(chance.randrange(1 << 16, 1 << 22)))
    while sum(tensor.nbytes for tensor in alive) > {ALIVE}:
        alive.pop(chance.randrange(len(alive)))
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Ray brings an allocator for Linux")
@pytest.mark.slow
def test_freed_memory_serves_other_tensors() -> None:
    variables = os.environ | allocator_variables()
    done = subprocess.run([sys.executable, "-c", CHURN], env=variables, capture_output=True, check=True, text=True)
    assert int(done.stdout) < MOST * ALIVE
