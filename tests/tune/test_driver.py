"""A trial's driver by itself: where it goes on, and what it costs a machine to have many of them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ray import tune

from triptych.tune.driver import POINTER, resumed
from triptych.tune.trial import Assignment

ASSIGNED = Assignment(3, {"stages.sft.method.r": 2}, "trial-003", reported=2, device_seconds=5.0, tokens=7)


def paused(folder: Path, run: str) -> tune.Checkpoint:
    (folder / POINTER).write_text(json.dumps({"run": run, "step": 6, "device_seconds": 9.0}))
    return tune.Checkpoint.from_directory(folder)


def test_a_paused_trial_goes_on_where_it_was(tmp_path: Path) -> None:
    assert resumed(ASSIGNED, None) == ASSIGNED
    assert resumed(ASSIGNED, paused(tmp_path, "trial-003")) == replace(ASSIGNED, reported=6, device_seconds=9.0)
    # From another's weights: what it has spent and reported is its own.
    assert resumed(ASSIGNED, paused(tmp_path, "trial-001")) == ASSIGNED


@pytest.mark.slow
def test_a_driver_brings_no_more_than_its_executor_needs() -> None:
    heavy = "[name for name in ('torch', 'transformers', 'peft', 'optuna') if name in sys.modules]"
    code = f"import sys, triptych.tune.driver; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
