"""The whole loop for real, small: once undisturbed, once stopped in every stage and with an engine killed."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml

from tests.support.panels import assert_shown
from tests.support.scraping import Prometheus, free_port, prometheus
from triptych import storage
from triptych.observe.log import read_metrics
from triptych.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
LR = "stages.sft.train.optimizer.lr"
STEPS = 4
SAMPLES = 16


@dataclass(frozen=True)
class Undisturbed:
    """An undisturbed run, and the Prometheus that scraped it, if there is one."""

    run: Path
    before_ppo: Path
    """A copy of all that there was when SFT and the reward model were done."""
    summary: dict[str, Any]
    prometheus: Prometheus | None
    since: float


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


@pytest.fixture(scope="module")
def undisturbed(module_recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Undisturbed]:
    """It goes through with Prometheus beside it: SFT and the reward model, then PPO."""
    folder, port, since = tmp_path_factory.mktemp("straight"), free_port(), time.time()
    recipe = yaml.safe_load(module_recipe_file.read_text())
    del recipe["stages"]["ppo"]
    (folder / "first.yaml").write_text(yaml.safe_dump(recipe))
    with prometheus(folder, port, "1s") as server:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RAY_metrics_report_interval_ms", "1000")
            finish(start(folder / "first.yaml", folder / "runs", "--metrics-port", str(port)))
            shutil.copytree(folder / "runs", folder / "before")
            summary = finish(start(module_recipe_file, folder / "runs", "--metrics-port", str(port)))
        yield Undisturbed(folder / "runs" / "tiny", folder / "before", summary, server, since)


@pytest.mark.timeout(900)
def test_every_panel_shows_what_a_run_does(undisturbed: Undisturbed) -> None:
    assert_shown(undisturbed.prometheus, ("training", "rl", "cluster"), undisturbed.since)
    assert undisturbed.prometheus is not None
    assert undisturbed.prometheus.firing() == set()


@pytest.fixture(params=["in ppo", pytest.param("in every stage", marks=pytest.mark.exhaustive)])
def disturbed(
    request: pytest.FixtureRequest, undisturbed: Undisturbed, module_recipe_file: Path, tmp_path: Path
) -> tuple[Path, dict[str, Any]]:
    """Stopped, and with an engine killed: the run's folder and its summary."""
    run = tmp_path / "runs" / "tiny"
    if request.param == "in ppo":
        shutil.copytree(undisturbed.before_ppo, run.parent)
    else:
        process = start(module_recipe_file, run.parent)
        interrupt_when(process, lambda: has_checkpoint(run, "sft") and has_checkpoint(run, "reward"))
        assert not finished(run, "sft")
        assert not finished(run, "reward")
    process = start(module_recipe_file, run.parent)
    interrupt_when(process, lambda: has_checkpoint(run, "ppo"))
    assert not finished(run, "ppo")
    process = start(module_recipe_file, run.parent)
    kill_an_engine(process, run)
    return run, finish(process)


@pytest.mark.timeout(1800)
def test_a_disturbed_run_ends_like_an_undisturbed_one(
    undisturbed: Undisturbed, disturbed: tuple[Path, dict[str, Any]], module_recipe_file: Path
) -> None:
    straight, (run, summary) = undisturbed.run, disturbed

    for stage in ("sft", "reward"):
        expected, found = (read_metrics(str(folder / "stages" / stage)) for folder in (straight, run))
        assert [row["step"] for row in found] == list(range(1, 61))
        assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in expected], abs=1e-5)
    assert undisturbed.summary["sft"]["metrics"] == pytest.approx(summary["sft"]["metrics"], abs=1e-5)
    losses = [row["loss"] for row in read_metrics(str(straight / "stages/sft"))]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])

    expected_rollouts, found_rollouts = rollouts(straight), rollouts(run)
    assert len(found_rollouts) == len(expected_rollouts) == STEPS
    for expected_step, found_step in zip(expected_rollouts, found_rollouts, strict=True):
        assert len(set(found_step["lease"])) == len(found_step["lease"]) == SAMPLES
        for column in ("lease", "prompt_ids", "seed"):
            assert found_step[column] == expected_step[column]
    assert [set(map(tuple, step["versions"])) and step["versions"][0][0] for step in found_rollouts] == [0, 1, 2, 3]
    # The same weights and seeds sample the same answers, so the runs also learn the same.
    assert [step["response_ids"] for step in found_rollouts] == [step["response_ids"] for step in expected_rollouts]

    rows = read_metrics(str(run / "stages/ppo"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[0]["kl"] == 0.0  # policy and reference are one adapter, to the bit
    assert all(row["sync_gap"] < 1e-3 for row in rows)

    registry = Registry(f"sqlite:///{run.parent}/registry.db")
    assert set(registry.get("tiny-ppo@1").lineage["parents"]) == {"tiny-sft@1", "tiny-reward@1"}
    planned = registry.calibrations()
    assert sorted(record["stage"] for record in planned) == ["ppo", "reward", "sft"]
    assert all(record["actual"] > 0 and record["tokens_per_second"]["actual"] > 0 for record in planned)

    again = start(module_recipe_file, run.parent)
    # A stage is not gone on with under another recipe.
    shutil.copytree(straight, run.parent / "other" / "tiny")
    (run.parent / "other/tiny/stages/sft/summary.json").unlink()
    other = start(module_recipe_file, run.parent / "other", "--stage", "sft", "--set", f"{LR}=0.5")
    assert finish(again) == summary
    out, err = other.communicate(timeout=280)
    assert other.returncode == 2
    assert "stage.train.optimizer.lr: 0.002 -> 0.5" in err
    assert out == ""


@pytest.mark.exhaustive
@pytest.mark.timeout(900)
def test_base_sft_and_ppo_are_measured_side_by_side_and_a_gate_stops_the_graph(
    undisturbed: Undisturbed, module_recipe_file: Path, tmp_path: Path
) -> None:
    recipe = yaml.safe_load(module_recipe_file.read_text())
    stages = recipe["stages"]
    heldout = stages["sft"]["data"]["heldout"]
    stages["compare"] = {
        "kind": "evaluation",
        "models": ["base", "sft", "ppo"],
        "sets": {
            "chats": {"data": heldout, "measure": {"name": "loss"}},
            "prompts": {"data": stages["ppo"]["data"]["train"], "measure": {"name": "judge", "reward": "reward"}},
        },
        "gate": [
            {"set": "chats", "model": "sft", "better_than": "base"},
            {"set": "prompts", "model": "ppo", "metric": "wins", "at_least": 1.01},
        ],
        "compute": {"batch": {"max_length": 128}},
        "rollout": {"engines": 1, "max_prompt_tokens": 96, "kv_cache_gb": 0.1, "sampling": {"max_new_tokens": 8}},
    }
    stages["after"] = stages["sft"] | {"needs": ["compare"]}
    path, runs = tmp_path / "judged.yaml", tmp_path / "runs"
    path.write_text(yaml.safe_dump(recipe))
    shutil.copytree(undisturbed.run.parent, runs)
    _, err = (process := start(path, runs)).communicate(timeout=600)
    assert process.returncode == 1, err
    assert "stage compare: gate.1: wins of ppo on prompts is " in err
    assert not (runs / "tiny/stages/after/state.json").exists(), "the graph stopped"
    found = json.loads((runs / "tiny/stages/compare/evaluations/comparison.json").read_text())
    for name, metric in (("chats", "loss"), ("prompts", "score")):
        models = found["sets"][name]["figures"][metric]["models"]
        assert list(models) == ["base", "sft", "ppo"]
        assert all(model["low"] <= model["value"] <= model["high"] for model in models.values())
        assert all(models[ref]["difference"]["low"] <= models[ref]["difference"]["high"] for ref in ("sft", "ppo"))
