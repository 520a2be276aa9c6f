"""Whole sweeps on a cluster: the same table after a kill, nothing left behind, weights that are really exploited."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util import placement_group_table
from ray.util.state import list_actors

from triptych import storage
from triptych.observe.progress import Progress
from triptych.observe.report.sweep import render_sweep
from triptych.observe.sweeps import SweepView, read_events
from triptych.recipe import Recipe
from triptych.registry import Registry
from triptych.tune.sweep import run_sweep, sweep_folder

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

Make = Callable[..., Recipe]
LR = "stages.sft.train.optimizer.lr"
RAYS_OWN = ("_Board", "PlacementGroupCleaner", "_AutoscalingCoordinatorActor")


def table(found: SweepView) -> list[tuple[Any, ...]]:
    return [
        (trial.name, trial.status, trial.step, trial.values, trial.metrics["heldout_loss"], trial.tokens)
        for trial in found.trials
    ]


def left_behind() -> list[str]:
    """Actors of sweeps and placement groups that are still there; those that Ray keeps for itself ask for nothing."""
    groups = [key for key, group in placement_group_table().items() if group["state"] != "REMOVED"]
    here = ray.get_runtime_context().gcs_address  # other clusters may run on this machine
    actors = [actor.class_name for actor in list_actors(here, filters=[("state", "=", "ALIVE")])]
    return [*groups, *(name for name in actors if name not in RAYS_OWN)]


def soon(condition: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_killed_sweep_goes_on_to_the_same_table(make_recipe: Make, tmp_path: Path) -> None:
    asha = {"grace": 2, "reduction": 2}
    sweep = {"scheduler": "asha", "asha": asha, "budget": {"trials": 3}, "winner": {"register_as": "won"}}
    recipe = make_recipe(evaluate_every=None, **sweep)
    undisturbed = run_sweep(recipe, Progress.start())
    assert {e["step"] for e in undisturbed.events if e["event"] == "report"} == {2, 4, 6}  # rungs, and the end
    assert {trial.status for trial in undisturbed.trials} <= {"done", "stopped"}
    assert undisturbed.best is not None
    assert not storage.exists(storage.join(undisturbed.url, "tune"))

    command = [str(Path(sys.executable).with_name("triptych")), "sweep", str(tmp_path / "recipe.yaml"), "--json"]
    command += ["--set", "name=disturbed", "--train-winner"]
    env = os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    folder = sweep_folder(recipe.model_copy(update={"name": "disturbed"}))
    driver = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL)
    reports = [e["trial"] for e in undisturbed.events if e["event"] == "report"]
    half = len(reports) // 2
    soon(lambda: sum(e["event"] == "report" for e in read_events(folder)) > half, 300, lambda: read_events(folder))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    soon(lambda: not left_behind(), 60, left_behind)

    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stderr
    soon(lambda: not left_behind(), 60, left_behind)
    told = json.loads(done.stdout)
    again = [
        (t["trial"], t["status"], t["step"], t["values"], t["metrics"]["heldout_loss"], t["tokens"])
        for t in told["trials"]
    ]
    assert again == table(undisturbed)
    assert told["best"] == undisturbed.best.name
    assert "<svg" in Path(told["report"]).read_text()

    runs = tmp_path / "runs"
    version = Registry(f"sqlite:///{runs}/registry.db", str(runs / "artifacts")).get("won@1")
    assert version.lineage["sweep"]["trial"] == told["best"]
    assert version.metrics["heldout_loss"] == pytest.approx(undisturbed.best.metrics["heldout_loss"], abs=1e-5)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_an_exploited_trial_begins_where_its_donor_was(make_recipe: Make) -> None:
    recipe = make_recipe(
        scheduler="pbt",
        space={LR: {"loguniform": [1e-4, 1e-2]}},
        budget={"trials": 2},
        pbt={"every": 2, "quantile": 0.5, "resample": 0.0},
    )
    found = run_sweep(recipe, Progress.start())
    assert [trial.status for trial in found.trials] == ["done", "done"]
    assert [trial.step for trial in found.trials] == [6, 6]
    exploits = [(trial, exploit) for trial in found.trials for exploit in trial.exploits]
    assert exploits
    donors = {trial.name: trial for trial in found.trials}
    for trial, exploit in exploits:
        donor = next(
            r["metrics"]["heldout_loss"] for r in donors[exploit["donor"]].reports if r["step"] == exploit["step"]
        )
        first = next(report for report in trial.reports if report["run"] == exploit["run"])
        assert first["step"] == exploit["step"]
        assert first["metrics"]["heldout_loss"] == pytest.approx(donor, abs=1e-6)
        ratio = exploit["values"][LR] / donors_rate(found, exploit)
        assert ratio == pytest.approx(0.8) or ratio == pytest.approx(1.2)
    soon(lambda: not left_behind(), 60, left_behind)
    page = render_sweep(found, {})
    assert f"at step {exploits[0][1]['step']} from {exploits[0][1]['donor']}" in page


def donors_rate(found: SweepView, exploit: dict[str, Any]) -> float:
    """The donor's learning rate when it was exploited."""
    rate = 0.0
    for event in found.events:
        if event is exploit:
            break
        if event["event"] in ("begun", "exploit") and f"trial-{event['trial']:03d}" == exploit["donor"]:
            rate = event["values"][LR]
    return rate
