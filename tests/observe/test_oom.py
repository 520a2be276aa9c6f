"""Why a run ran out of memory, from what it left."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.observe.oom import diagnose_oom
from triptych.observe.runs import RunView, read_run

MIB = 2**20
PARTS = {"weights": 256 * MIB, "activations": 700 * MIB, "logits": 90 * MIB, "optimizer": 40 * MIB}


def run(folder: Path, plan: Mapping[str, Any] | None, peak: int | None = None) -> RunView:
    stage = folder / "run" / "stages" / "sft"
    stage.mkdir(parents=True)
    (folder / "run" / "recipe.yaml").write_text("name: run\nstages:\n  sft: {kind: sft}\n")
    if plan is not None:
        (stage / "plan.json").write_text(json.dumps(plan))
    if peak is not None:
        (stage / "metrics").mkdir()
        row = {"step": 1, "peak_memory_bytes": peak, "tokens": 10, "tokens_per_second": 5.0}
        (stage / "metrics" / "step-00000001.jsonl").write_text(json.dumps(row) + "\n")
    return read_run(str(folder / "run"))


def plan(parts: Mapping[str, int] = PARTS, error: str = "RunError: a worker failed: Out of memory") -> dict[str, Any]:
    expected = sum(parts.values())
    peak = {"low": expected // 2, "expected": expected, "high": 2 * expected}
    predicted = {"peak_bytes": peak, "parts": parts, "capacity_bytes": 2048 * MIB, "tokens_per_second": 7.0}
    return {"predicted": predicted, "error": error}


def test_the_part_that_varies_most_outgrew(tmp_path: Path) -> None:
    (diagnosis,) = diagnose_oom(run(tmp_path, plan(), peak=1900 * MIB))
    assert (diagnosis.stage, diagnosis.ran_out, diagnosis.outgrew) == ("sft", True, "activations")
    assert "814 MiB more than planned" in diagnosis.why
    assert "checkpointing" in diagnosis.advice


def test_logits_where_they_are_the_most(tmp_path: Path) -> None:
    (diagnosis,) = diagnose_oom(run(tmp_path, plan({**PARTS, "logits": 900 * MIB})))
    assert (diagnosis.outgrew, diagnosis.actual_bytes) == ("logits", None)
    assert "before its first row" in diagnosis.why
    assert "loss_chunk" in diagnosis.advice


def test_a_plan_that_needed_more_than_there_is(tmp_path: Path) -> None:
    (diagnosis,) = diagnose_oom(run(tmp_path, plan({**PARTS, "weights": 4096 * MIB})))
    assert diagnosis.outgrew == "weights"
    assert "the plan itself" in diagnosis.why


def test_another_error_is_told_as_such(tmp_path: Path) -> None:
    (diagnosis,) = diagnose_oom(run(tmp_path, plan(error="UserError: no room for the longest row"), peak=900 * MIB))
    assert not diagnosis.ran_out
    assert "stayed within the plan" in diagnosis.why


def test_a_run_without_a_plan(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no stage has a plan.json"):
        diagnose_oom(run(tmp_path, None))
