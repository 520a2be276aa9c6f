"""Metrics segments: written at checkpoints, dropped and written again by a stage that resumes."""

import json
import math
from pathlib import Path

import fsspec
import pytest

from triptych import storage
from triptych.observe.log import MetricsLog, read_metrics


@pytest.fixture(params=["local", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "stage")
    fsspec.filesystem("memory").store.clear()
    return "memory://stage"


def _steps(folder: str) -> list[int]:
    return [row["step"] for row in read_metrics(folder)]


def test_rows_come_back_in_order(folder: str) -> None:
    log = MetricsLog(folder)
    for step in range(1, 13):
        log.add({"step": step, "loss": 1 / step})
        if step % 4 == 0:
            log.flush(step)
    assert _steps(folder) == list(range(1, 13))
    assert read_metrics(folder)[2] == {"step": 3, "loss": 1 / 3}


def test_what_is_no_number_is_null_in_the_file_and_nan_again(folder: str) -> None:
    log = MetricsLog(folder)
    log.add({"step": 1, "loss": math.nan, "grad_norm": math.inf, "rates": [1.0]})
    log.flush(1)
    (name,) = storage.list_files(f"{folder}/metrics")
    written = json.loads(storage.read_bytes(f"{folder}/metrics/{name}"), parse_constant=pytest.fail)
    assert written == {"step": 1, "loss": None, "grad_norm": None, "rates": [1.0]}
    (row,) = read_metrics(folder)
    assert math.isnan(row.pop("loss"))
    assert math.isnan(row.pop("grad_norm"))
    assert row == {"step": 1, "rates": [1.0]}


def test_rows_since_the_last_flush_are_not_there(folder: str) -> None:
    log = MetricsLog(folder)
    log.add({"step": 1})
    log.flush(1)
    log.add({"step": 2})
    assert _steps(folder) == [1]


def test_a_resumed_stage_replaces_what_came_after_its_checkpoint(folder: str) -> None:
    log = MetricsLog(folder)
    for step in (2, 4, 6):
        log.add({"step": step - 1, "try": 1})
        log.add({"step": step, "try": 1})
        log.flush(step)
    resumed = MetricsLog(folder)
    resumed.truncate(2)
    assert _steps(folder) == [1, 2]
    resumed.add({"step": 3, "try": 2})
    resumed.flush(3)
    assert [(row["step"], row["try"]) for row in read_metrics(folder)] == [(1, 1), (2, 1), (3, 2)]


def test_nothing_to_read_or_drop_before_the_first_flush(folder: str) -> None:
    MetricsLog(folder).truncate(0)
    MetricsLog(folder).flush(0)
    assert read_metrics(folder) == []


def test_a_metric_written_under_its_old_name_is_read_under_the_new_one(folder: str) -> None:
    log = MetricsLog(folder)
    log.add({"step": 1, "canary_gap": 0.25})
    log.flush(1)
    log.add({"step": 2, "sync_gap": 0.5})
    log.flush(2)
    assert read_metrics(folder) == [{"step": 1, "sync_gap": 0.25}, {"step": 2, "sync_gap": 0.5}]
