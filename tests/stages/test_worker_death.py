"""A worker dies, or a node goes: the group restarts from the last checkpoint, and ends as if nothing had been."""

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from ray.cluster_utils import Cluster

from triptych import storage
from triptych.cluster.ray import connect
from triptych.observe.log import read_metrics
from triptych.observe.progress import Progress
from triptych.recipe import load_recipe
from triptych.stages.run import run_recipe

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

Run = Future[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs, and two nodes of one CPU each, which this process joins as `triptych run` would."""
    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_health_check_period_ms", "1000")
    patch.setenv("RAY_health_check_failure_threshold", "4")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    patch.setenv("RAY_ADDRESS", made.address)
    with connect():
        yield made
    made.shutdown()
    patch.undo()


def start(recipe: Path, runs: Path, *settings: str) -> Run:
    loaded = load_recipe(recipe, [f"storage.runs={runs}", *settings])
    return ThreadPoolExecutor(1).submit(run_recipe, loaded, Progress.start(), only="sft")


def losses(run: Run, runs: Path) -> list[float]:
    assert set(run.result(timeout=280)) == {"sft"}
    return [row["loss"] for row in read_metrics(str(runs / "tiny/stages/sft"))]


def await_checkpoint(run: Run, runs: Path) -> None:
    deadline = time.monotonic() + 200
    while not storage.list_committed(str(runs / "tiny/stages/sft/checkpoints")):
        assert not run.done(), run.exception()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def workers() -> list[psutil.Process]:
    return [process for process in psutil.Process().children(recursive=True) if "ray::RayTrainWorker" in title(process)]


def title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:
        return ""


TWO = (
    "stages.sft.train.workers.count=2",
    "stages.sft.train.steps=30",
    "stages.sft.method.dropout=0",  # its masks depend on the rank
)


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, module_recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of two workers whom nothing happens to."""
    runs = tmp_path_factory.mktemp("undisturbed")
    return losses(start(module_recipe_file, runs, *TWO), runs)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_a_worker_that_dies_costs_nothing_but_time(
    module_recipe_file: Path, tmp_path: Path, undisturbed: list[float]
) -> None:
    run = start(module_recipe_file, tmp_path, *TWO)
    await_checkpoint(run, tmp_path)
    first_group = workers()
    assert len(first_group) == 2
    os.kill(first_group[-1].pid, signal.SIGKILL)
    found = losses(run, tmp_path)
    assert len(found) == len(undisturbed) == 30
    assert found == pytest.approx(undisturbed, abs=1e-5)


@pytest.mark.exhaustive
@pytest.mark.timeout(600)
def test_an_elastic_group_goes_on_with_the_nodes_that_are_left(
    cluster: Cluster,
    module_recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: list[float],
) -> None:
    """Two workers on a node each; one node is lost, and one worker ends what two began."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")  # it may try the lost node once more
    elastic = [*TWO, "stages.sft.train.workers.min_count=1"]
    elastic += ["stages.reward.needs=[sft]"]  # else it might want room beside it
    run = start(module_recipe_file, tmp_path, *elastic)
    await_checkpoint(run, tmp_path)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    found = losses(run, tmp_path)
    assert found == pytest.approx(undisturbed, abs=1e-4)
    rows = read_metrics(str(tmp_path / "tiny/stages/sft"))
    assert [len(row["worker_tokens_per_second"]) for row in (rows[0], rows[-1])] == [2, 1]
