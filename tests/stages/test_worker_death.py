"""A worker dies, or a node goes: the group restarts from the last checkpoint, and ends as if nothing had been."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from ray.cluster_utils import Cluster

from triptych import storage
from triptych.observe.log import read_metrics

pytestmark = pytest.mark.slow

TRIPTYCH = str(Path(sys.executable).parent / "triptych")


def start(recipe: Path, runs: Path, *settings: str, address: str | None = None) -> "subprocess.Popen[str]":
    words = [TRIPTYCH, "run", str(recipe), "--stage", "sft", "--json"] + ([] if address else ["--cpus", "2"])
    for setting in (f"storage.runs={runs}", *settings):
        words += ["--set", setting]
    environment = os.environ | ({"RAY_ADDRESS": address} if address else {})
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def losses(process: "subprocess.Popen[str]", runs: Path) -> list[float]:
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert set(json.loads(out)) == {"sft"}
    return [row["loss"] for row in read_metrics(str(runs / "tiny/stages/sft"))]


def await_checkpoint(process: "subprocess.Popen[str]", runs: Path) -> None:
    deadline = time.monotonic() + 200
    while not storage.list_committed(str(runs / "tiny/stages/sft/checkpoints")):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    children = psutil.Process(process.pid).children(recursive=True)
    return [child for child in children if "ray::RayTrainWorker" in " ".join(child.cmdline())]


TWO = (
    "stages.sft.train.workers.count=2",
    "stages.sft.train.steps=30",
    "stages.sft.method.dropout=0",  # its masks depend on the rank
)


@pytest.fixture(scope="module")
def undisturbed(module_recipe_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of two workers whom nothing happens to."""
    runs = tmp_path_factory.mktemp("undisturbed")
    return losses(start(module_recipe_file, runs, *TWO), runs)


@pytest.mark.timeout(600)
def test_a_worker_that_dies_costs_nothing_but_time(
    module_recipe_file: Path, tmp_path: Path, undisturbed: list[float]
) -> None:
    process = start(module_recipe_file, tmp_path, *TWO)
    await_checkpoint(process, tmp_path)
    first_group = workers(process)
    assert len(first_group) == 2
    os.kill(first_group[-1].pid, signal.SIGKILL)
    found = losses(process, tmp_path)
    assert len(found) == len(undisturbed) == 30
    assert found == pytest.approx(undisturbed, abs=1e-5)


@pytest.fixture
def three_nodes() -> Iterator[Cluster]:
    """A head without CPUs, and two nodes of one CPU each."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


@pytest.mark.timeout(600)
def test_an_elastic_group_goes_on_with_the_nodes_that_are_left(
    three_nodes: Cluster,
    module_recipe_file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    undisturbed: list[float],
) -> None:
    """Two workers on a node each; one node is lost, and one worker ends what two began."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "15")  # it may try the lost node once more
    elastic = [*TWO, "stages.sft.train.workers.min_count=1"]
    elastic += ["stages.reward.needs=[sft]"]  # else it might want room beside it
    process = start(module_recipe_file, tmp_path, *elastic, address=three_nodes.address)
    await_checkpoint(process, tmp_path)
    three_nodes.remove_node(next(iter(three_nodes.worker_nodes)), allow_graceful=False)
    found = losses(process, tmp_path)
    assert found == pytest.approx(undisturbed, abs=1e-4)
    rows = read_metrics(str(tmp_path / "tiny/stages/sft"))
    assert [len(row["worker_tokens_per_second"]) for row in (rows[0], rows[-1])] == [2, 1]
