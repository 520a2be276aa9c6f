"""Runs on a cluster of three nodes, sent from outside as a laptop does."""

import json
import secrets
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
import yaml

from tests.support.kubernetes_stand_in import calls, stand_in
from tests.support.three_nodes import NEWER, Cluster, Laptop, assert_no_token, free_port, until
from triptych import storage
from triptych.models.adapter import load_adapter
from triptych.observe.log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    ("method", "route"),
    [
        ("GET", "/api/jobs/"),
        ("POST", "/api/jobs/"),
        ("POST", "/api/jobs/any/stop"),
        ("DELETE", "/api/jobs/any"),
        ("GET", "/api/jobs/any/logs"),
        ("PUT", "/api/packages/gcs/any.zip"),
        ("GET", "/api/v0/nodes"),
        ("GET", "/api/v0/logs"),
        ("GET", "/api/version"),
    ],
)
def test_nobody_calls_the_cluster_without_its_token(cluster: Cluster, method: str, route: str) -> None:
    def status(**headers: str) -> int:
        return requests.request(method, cluster.url + route, headers=headers, json={}, timeout=60).status_code

    assert status() == 401
    assert status(Authorization=f"Bearer {secrets.token_hex(32)}") == 403
    assert status(Authorization=f"Bearer {cluster.token}") not in (401, 403)


def jobs_of(laptop: Laptop) -> set[str]:
    """The cluster's jobs that are ours."""
    token = {"Authorization": f"Bearer {laptop.cluster.token}"}
    jobs = requests.get(f"{laptop.cluster.url}/api/jobs/", headers=token, timeout=60).json()
    return {job["submission_id"] for job in jobs if (job["metadata"] or {}).get("triptych")}


def test_a_wrong_request_says_so_and_leaves_nothing(laptop: Laptop, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(secrets.token_hex(32))
    shared = f"storage.runs={tmp_path / 'shared'}"
    cases: tuple[tuple[list[str], Path | None, str], ...] = (
        (["--set", shared], wrong, "refused the token"),
        (["--set", shared], tmp_path / "none", "there is none in RAY_AUTH_TOKEN_PATH"),
        (["--set", shared, "--address", f"http://127.0.0.1:{free_port()}"], None, "nothing answers"),
        ([], None, "storage.runs: 'runs' is a place of this machine"),
        (["--set", shared, "--set", "stages.sft.data.train.path=data/none.jsonl"], None, "no such file"),
        (["--set", "storage.runs=/proc/runs"], None, "storage.runs: /proc/runs cannot be written on the cluster"),
    )
    before = jobs_of(laptop)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda case: laptop.call("run", "recipe.yaml", *case[0], token=case[1]), cases))
    for (code, out, err), (_, _, said) in zip(found, cases, strict=True):
        assert (code, out) == (2, ""), err
        assert said in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    assert jobs_of(laptop) == before
    assert not (tmp_path / "shared").exists()


def test_what_runs_is_the_version_that_was_sent(trained: Laptop) -> None:
    facts = json.loads(trained.call("adapters", "show", "small-ppo", "--json")[1])
    assert facts["lineage"]["code"] == NEWER
    assert set(facts["lineage"]["parents"]) == {"small-sft@1", "small-reward@1"}


def test_a_run_goes_on_without_its_laptop_and_without_a_node(laptop: Laptop, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    stage = shared / "tiny" / "stages" / "sft"
    command = ("run", "recipe.yaml", "--set", f"storage.runs={shared}")

    submitted = laptop.begin(*command)
    until("a checkpoint", lambda: storage.list_committed(str(stage / "checkpoints")))
    submitted.send_signal(signal.SIGINT)
    node = laptop.cluster.trainer()
    assert node is not None
    laptop.cluster.kill(node)
    code, _, err = laptop.end(submitted)
    assert code == 130
    assert "sending the recipe and " in err
    assert "detached; tiny goes on" in err

    code, _, err = laptop.call(*command)
    assert code == 2
    assert "run tiny is going on" in err

    followed = laptop.begin("runs", "follow", "tiny", "--json")
    assert_no_token(laptop)
    code, out, err = laptop.end(followed)
    assert code == 0, err
    assert "sft: 150/150" in err
    summary = json.loads(out)["sft"]
    assert summary["registered"] == "tiny-sft@1"
    assert [row["step"] for row in read_metrics(str(stage))] == list(range(1, 151))
    about = json.loads((stage / "state.json").read_text())
    assert about["stage"]["data"]["train"]["path"] == "data/sft.jsonl", "as it would be on the laptop"
    assert {path.name for path in shared.iterdir()} >= {"tiny", "registry.db", "artifacts"}

    assert laptop.call("runs", "report", "tiny")[:2] == (0, "tiny-report.html\n")
    assert "<html" in (laptop.folder / "tiny-report.html").read_text()
    assert laptop.call("adapters", "export", "tiny-sft", "fetched")[:2] == (0, "tiny-sft@1 -> fetched\n")
    (stored,) = (shared / "artifacts" / "tiny-sft").iterdir()
    kept, fetched = storage.verify(str(stored)), storage.verify(str(laptop.folder / "fetched"))
    assert kept.digest == summary["sha256"]
    assert fetched.files["adapter_model.safetensors"] == kept.files["adapter_model.safetensors"]
    assert {"README.md"} == fetched.files.keys() - kept.files.keys()
    load_adapter(laptop.folder / "fetched", "policy")
    runs = json.loads(laptop.call("runs", "list", "--json")[1])
    [listed] = [run for run in runs if run["name"] == "tiny"]
    assert (listed["job"], listed["runs"], listed["stages"]) == ("succeeded", str(shared), {"sft": "done"})

    kubernetes = stand_in(tmp_path, laptop.cluster.dashboard) | {"TRIPTYCH_ADDRESS": ""}
    code, out, err = laptop.call("runs", "list", "--json", "--kube-context", "lab", environment=kubernetes)
    assert (code, json.loads(out)) == (0, runs)
    assert "the port-forward ended (error: lost connection to pod), and is renewed" in err
    assert all(laptop.cluster.token not in word for call in calls(tmp_path) for word in call["words"])
    assert_no_token(laptop)


@pytest.mark.exhaustive
def test_a_sweep_goes_on_without_its_laptop(laptop: Laptop, tmp_path: Path) -> None:
    recipe = yaml.safe_load((laptop.folder / "recipe.yaml").read_text())
    recipe["stages"]["sft"]["train"] |= {"steps": 4, "checkpoint_every": 2}
    recipe["sweep"] = {
        "stage": "sft",
        "space": {"stages.sft.method.r": {"choice": [2, 4]}},
        "objective": {"metric": "loss", "mode": "min"},
        "search": "grid",
        "budget": {"trials": 2},
    }
    (laptop.folder / "sweep.yaml").write_text(yaml.safe_dump(recipe))
    command = ("sweep", "sweep.yaml", "--set", f"storage.runs={tmp_path / 'shared'}")
    assert laptop.call(*command, "--detach")[:2] == (0, "tiny-sweep\n")
    code, _, err = laptop.call(*command)
    assert (code, "sweep tiny-sweep is going on" in err) == (2, True), err

    code, out, err = laptop.call("runs", "follow", "tiny-sweep", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [(trial["status"], trial["step"]) for trial in found["trials"]] == [("done", 4), ("done", 4)]
    [best] = found["settings"]
    assert best == found["best"]

    code, out, _ = laptop.call("runs", "show", "tiny-sweep")
    assert f"{best}: --set 'stages.sft.method.r=" in out
    assert laptop.call("runs", "report", "tiny-sweep")[:2] == (0, "tiny-sweep-report.html\n")
    assert best in (laptop.folder / "tiny-sweep-report.html").read_text()
    assert_no_token(laptop)
