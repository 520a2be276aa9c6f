"""Every number of a run's rows is in each tracker once, whatever was killed in between."""

import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from triptych.errors import UserError
from triptych.observe.trackers import Tracked, Trackers, check_trackers, tracked
from triptych.recipe import Recipe, TrackerName

RECIPE = {"name": "tiny", "model": {"base": "m"}, "storage": {"registry": "postgresql://me:secret@host/db"}}


@pytest.fixture
def stage(tmp_path: Path) -> str:
    folder = tmp_path / "runs" / "tiny" / "stages" / "sft"
    folder.mkdir(parents=True)
    return str(folder)


def row(step: int, attempt: int = 0) -> dict[str, Any]:
    """The loss is the same in each attempt, as training is; the seconds are not."""
    return {
        "step": step,
        "loss": 1 / step,
        "worker_tokens_per_second": [10.0, 20.0 + step],
        "seconds_forward": step + attempt / 8,
        "note": "no number",
    }


def what(stage: str, rows: Sequence[Mapping[str, Any]] = ()) -> Tracked:
    return Tracked(stage, "tiny", "sft", RECIPE, rows)


def killed_and_resumed(name: TrackerName, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after step 7 with a checkpoint of step 4; then to the end, step 9."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    first = Trackers([name], what(stage))
    first._thread.start()
    for step in range(1, 8):
        first.record(row(step))
    first._rows.put(None)  # what a killed process had sent is there; here its thread ends too
    first._thread.join()
    with Trackers([name], what(stage, [row(step) for step in range(1, 5)])) as second:
        for step in range(5, 10):
            second.record(row(step, attempt=1))


def check(found: Mapping[str, list[tuple[int, float]]]) -> None:
    assert [step for step, _ in found["loss"]] == list(range(1, 10))
    assert [value for _, value in found["loss"]] == pytest.approx([1 / step for step in range(1, 10)])
    assert found["worker_tokens_per_second/1"] == [(step, 20.0 + step) for step in range(1, 10)]
    assert [step for step, _ in found["seconds_forward"]] == list(range(1, 10))
    assert "note" not in found


def test_tensorboard_has_each_step_once(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_and_resumed("tensorboard", stage, monkeypatch)
    events = EventAccumulator(f"{stage}/tensorboard", size_guidance={"scalars": 0}).Reload()
    check({tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]})
    text = events.Tensors("recipe/text_summary")[-1]  # one of each try
    assert b'"base": "m"' in text.tensor_proto.string_val[0]
    assert b"secret" not in text.tensor_proto.string_val[0]


def test_a_tensorboard_that_is_open_drops_what_a_killed_run_said(stage: str) -> None:
    with Trackers(["tensorboard"], what(stage)) as first:
        for step in range(1, 8):
            first.record({"step": step, "seconds": 1.0})
    events = EventAccumulator(f"{stage}/tensorboard", size_guidance={"scalars": 0}).Reload()
    with Trackers(["tensorboard"], what(stage, [{"step": 1, "seconds": 1.0}])) as second:
        second.record({"step": 2, "seconds": 3.0})
    events.Reload()
    assert [(e.step, e.value) for e in events.Scalars("seconds")] == [(1, 1.0), (2, 3.0)]


@pytest.mark.slow
def test_mlflow_has_each_step_once(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs triptych[mlflow]")
    killed_and_resumed("mlflow", stage, monkeypatch)
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path(stage).parents[2]}/mlflow.db")
    [experiment] = [e for e in client.search_experiments() if e.name == "triptych"]
    [run] = client.search_runs([experiment.experiment_id])
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    check({key: sorted((m.step, m.value) for m in history) for key, history in histories.items()})
    assert (run.info.run_name, run.info.status) == ("tiny-sft", "FINISHED")
    assert run.data.params["model.base"] == "m"
    assert run.data.params["storage.registry"] == "postgresql://***@host/db"


@pytest.mark.slow
def test_a_failed_stage_is_a_failed_run(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs triptych[mlflow]")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ZeroDivisionError), Trackers(["mlflow"], what(stage)):
        raise ZeroDivisionError
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{Path(stage).parents[2]}/mlflow.db")
    assert client.get_run(what(stage).run_id("mlflow")).info.status == "FAILED"


@pytest.mark.slow
def test_wandb_has_each_step_once_in_the_last_try(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb", reason="needs triptych[wandb]")
    logged: list[list[tuple[int, dict[str, float]]]] = []
    start = wandb.init

    def recording(**options: Any) -> Any:
        run = start(**options)
        logged.append([])
        monkeypatch.setattr(run, "log", lambda values, step: logged[-1].append((step, values)))
        return run

    monkeypatch.setattr(wandb, "init", recording)
    killed_and_resumed("wandb", stage, monkeypatch)
    found: dict[str, list[tuple[int, float]]] = {}
    for step, values in logged[-1]:
        for key, value in values.items():
            found.setdefault(key, []).append((step, value))
    check(found)
    run_id = what(stage).run_id("wandb")
    assert len(list(Path(stage).glob(f"wandb/offline-run-*-{run_id}/run-{run_id}.wandb"))) == 2


class Down:
    """A server that refuses its first rows."""

    def __init__(self, _: Tracked) -> None:
        self.last, self.steps, self.calls = 0, [], 0  # type: tuple[int, list[int], int]
        self.tried = threading.Event()

    def write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.calls += 1
        self.tried.set()
        if self.calls == 1:
            raise ConnectionError("https://me:secret@host refused")
        self.steps += [found["step"] for found in rows]

    def close(self, *, failed: bool) -> None:
        raise ConnectionError("gone")


def test_what_a_server_refused_is_sent_again(
    stage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = Down(what(stage))
    monkeypatch.setattr("triptych.observe.trackers._open", lambda name, tracked: server)
    with caplog.at_level(logging.WARNING), Trackers(["mlflow"], what(stage)) as trackers:
        trackers.record({"step": 1})
        assert server.tried.wait(10)
        trackers.record({"step": 2})
    assert server.steps == [1, 2]
    assert "https://***@host refused" in caplog.text
    assert "secret" not in caplog.text


def recipe(runs: str, *names: TrackerName) -> Recipe:
    stage = {"kind": "sft", "data": {"train": {"path": "x"}}, "train": {"steps": 1}}
    fields = {"name": "tiny", "model": {"base": "m"}, "storage": {"runs": runs}, "stages": {"sft": stage}}
    return Recipe.model_validate(fields | {"trackers": names})


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_a_missing_package_is_named(name: TrackerName, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"trackers: {name} is not installed; pip install 'triptych\[{name}\]'"):
        check_trackers(recipe("runs", name))


def test_an_object_store_holds_no_event_files() -> None:
    with pytest.raises(UserError, match="memory://runs cannot do; allowed with an object store: mlflow, wandb"):
        check_trackers(recipe("memory://runs", "tensorboard"))


def test_each_tracker_is_named_once() -> None:
    with pytest.raises(ValueError, match="trackers: each once"):
        recipe("runs", "tensorboard", "tensorboard")


def test_numbers_alone_are_tracked() -> None:
    found = dict(tracked.numbers({"step": 3, "a": 1, "b": [0.5, 2], "c": None, "d": "x", "e": []}))
    assert found == {"a": 1.0, "b/0": 0.5, "b/1": 2.0}
