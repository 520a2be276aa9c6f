"""kill -9 of one of two workers: the group restarts from the last checkpoint, and ends as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from triptych import storage
from triptych.observe.log import read_metrics

pytestmark = pytest.mark.slow

TRIPTYCH = str(Path(sys.executable).parent / "triptych")


def start(recipe: Path, runs: Path) -> "subprocess.Popen[str]":
    words = [TRIPTYCH, "run", str(recipe), "--stage", "sft", "--cpus", "2", "--json"]
    words += ["--set", f"storage.runs={runs}", "--set", "stages.sft.train.workers.count=2"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def losses(process: "subprocess.Popen[str]", runs: Path) -> list[float]:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert set(json.loads(out)) == {"sft"}
    return [row["loss"] for row in read_metrics(str(runs / "tiny/stages/sft"))]


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "ray::RayTrainWorker" in " ".join(child.cmdline())]


@pytest.mark.timeout(600)
def test_a_worker_that_dies_costs_nothing_but_time(recipe_file: Path, tmp_path: Path) -> None:
    undisturbed = losses(start(recipe_file, tmp_path / "straight"), tmp_path / "straight")

    disturbed = tmp_path / "disturbed"
    process = start(recipe_file, disturbed)
    checkpoints = str(disturbed / "tiny/stages/sft/checkpoints")
    deadline = time.monotonic() + 200
    while not storage.list_committed(checkpoints):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)
    first_group = workers(process)
    assert len(first_group) == 2
    os.kill(first_group[-1].pid, signal.SIGKILL)
    found = losses(process, disturbed)
    assert len(found) == len(undisturbed) == 60
    assert found == pytest.approx(undisturbed, abs=1e-5)
