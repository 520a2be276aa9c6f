"""The whole loop for real, small: once undisturbed, once stopped in every stage and with an engine killed."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from triptych import storage
from triptych.observe.log import read_metrics
from triptych.registry import Registry

pytestmark = pytest.mark.slow

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
STEPS = 4
SAMPLES = 16


def start(recipe: Path, runs: Path, *more: str) -> "subprocess.Popen[str]":
    words = [TRIPTYCH, "run", str(recipe), "--set", f"storage.runs={runs}", "--cpus", "2", "--json", *more]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process: "subprocess.Popen[str]") -> dict[str, Any]:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    summaries: dict[str, Any] = json.loads(out)
    return summaries


def interrupt_when(process: "subprocess.Popen[str]", reached: Callable[[], bool]) -> None:
    """Ctrl-C as soon as the run got that far."""
    deadline = time.monotonic() + 400
    while not reached():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the run never got there"
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=280)
    assert process.returncode == 130, err
    assert "the same command goes on" in err


def has_checkpoint(run: Path, stage: str) -> bool:
    return bool(storage.list_committed(str(run / "stages" / stage / "checkpoints")))


def finished(run: Path, stage: str) -> bool:
    return (run / "stages" / stage / "summary.json").exists()


def kill_an_engine(process: "subprocess.Popen[str]", run: Path) -> None:
    """kill -9, once the resumed run has sampled."""
    before = {file.name for file in (run / "stages/ppo/rollouts").iterdir()}
    deadline = time.monotonic() + 400
    while {file.name for file in (run / "stages/ppo/rollouts").iterdir()} == before:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the resumed run never sampled"
        time.sleep(0.01)
    engines = [
        child for child in psutil.Process(process.pid).children(recursive=True) if "ray::Engine" in _title(child)
    ]
    assert len(engines) == 2
    engines[0].kill()


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


def rollouts(run: Path) -> list[dict[str, list[Any]]]:
    files = sorted((run / "stages/ppo/rollouts").iterdir())
    return [pq.read_table(file).to_pydict() for file in files]


@pytest.fixture
def runs(recipe_file: Path, tmp_path: Path) -> tuple[Path, Path, dict[str, Any], dict[str, Any]]:
    """(undisturbed run's folder, disturbed run's folder, and their summaries)."""
    straight = finish(start(recipe_file, tmp_path / "straight"))

    disturbed = tmp_path / "disturbed" / "tiny"
    process = start(recipe_file, disturbed.parent)
    interrupt_when(process, lambda: has_checkpoint(disturbed, "sft") and has_checkpoint(disturbed, "reward"))
    assert not finished(disturbed, "sft")
    assert not finished(disturbed, "reward")
    process = start(recipe_file, disturbed.parent)
    interrupt_when(process, lambda: has_checkpoint(disturbed, "ppo"))
    assert not finished(disturbed, "ppo")
    process = start(recipe_file, disturbed.parent)
    kill_an_engine(process, disturbed)
    return tmp_path / "straight" / "tiny", disturbed, straight, finish(process)


@pytest.mark.timeout(1800)
def test_a_disturbed_run_ends_like_an_undisturbed_one(
    runs: tuple[Path, Path, dict[str, Any], dict[str, Any]], recipe_file: Path
) -> None:
    straight, disturbed, straight_summary, disturbed_summary = runs

    for stage in ("sft", "reward"):
        expected, found = (read_metrics(str(run / "stages" / stage)) for run in (straight, disturbed))
        assert [row["step"] for row in found] == list(range(1, 61))
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], abs=1e-5)
    assert straight_summary["sft"]["metrics"] == pytest.approx(disturbed_summary["sft"]["metrics"], abs=1e-5)
    losses = [row["loss"] for row in read_metrics(str(straight / "stages/sft"))]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])

    expected_rollouts, found_rollouts = rollouts(straight), rollouts(disturbed)
    assert len(found_rollouts) == len(expected_rollouts) == STEPS
    for expected_step, found_step in zip(expected_rollouts, found_rollouts, strict=True):
        assert len(set(found_step["lease"])) == len(found_step["lease"]) == SAMPLES
        for column in ("lease", "prompt_ids", "seed"):
            assert found_step[column] == expected_step[column]
    assert [set(map(tuple, step["versions"])) and step["versions"][0][0] for step in found_rollouts] == [0, 1, 2, 3]
    # The same weights and seeds sample the same answers, so the runs also learn the same.
    assert [step["response_ids"] for step in found_rollouts] == [step["response_ids"] for step in expected_rollouts]

    rows = read_metrics(str(disturbed / "stages/ppo"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["kl"] == 0.0  # policy and reference are one adapter, to the bit
    assert all(row["canary_gap"] < 1e-3 for row in rows)

    registry = Registry(f"sqlite:///{disturbed.parent}/registry.db")
    assert set(registry.get("tiny-ppo@1").lineage["parents"]) == {"tiny-sft@1", "tiny-reward@1"}
    planned = registry.calibrations()
    assert sorted(record["stage"] for record in planned) == ["ppo", "reward", "sft"]
    assert all(record["actual"] > 0 and record["tokens_per_second"]["actual"] > 0 for record in planned)

    again = start(recipe_file, disturbed.parent)
    # A stage is not gone on with under another recipe.
    (straight / "stages/sft/summary.json").unlink()
    process = start(recipe_file, straight.parent, "--stage", "sft", "--set", "stages.sft.train.optimizer.lr=0.5")
    assert finish(again) == disturbed_summary
    out, err = process.communicate(timeout=280)
    assert process.returncode == 2
    assert "stage.train.optimizer.lr: 0.002 -> 0.5" in err
    assert out == ""
