"""A cluster of a head and two workers, each with a folder of its own, and a laptop that knows its address and token."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import requests
import yaml

from triptych import storage
from triptych.models.adapter import load_adapter
from triptych.observe.log import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BIN = Path(sys.executable).parent
TRIPTYCH = str(BIN / "triptych")
PATIENCE_S = 180
OURS = {"RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "TRIPTYCH_REGISTRY"}


@dataclass
class Cluster:
    """Processes of `ray start --block`, each the leader of a group."""

    root: Path
    token: str
    dashboard: int
    nodes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self, name: str, *arguments: str) -> None:
        ports = [f"--dashboard-agent-listen-port={free_port()}", f"--metrics-export-port={free_port()}"]
        words = [str(BIN / "ray"), "start", "--block", f"--temp-dir={self.root / name}", *ports, *arguments]
        fast = {"RAY_health_check_period_ms": "1000", "RAY_health_check_failure_threshold": "4"}
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # jobs start `python`, as in an image or an activated venv
        log = (self.root / f"{name}.log").open("wb")
        environment = clean() | {"PATH": path, "RAY_AUTH_TOKEN_PATH": str(self.root / "token")} | fast
        environment |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        self.nodes.append(
            subprocess.Popen(words, stdout=log, stderr=log, env=environment, cwd=self.root, start_new_session=True)
        )

    def kill(self, node: "subprocess.Popen[bytes]") -> None:
        """As a power cut does: all of its processes at once."""
        family = [psutil.Process(node.pid), *psutil.Process(node.pid).children(recursive=True)]
        for process in family:
            process.kill()
        node.wait()
        self.nodes.remove(node)

    def trainer(self) -> "subprocess.Popen[bytes] | None":
        """The node with the training worker."""
        for node in self.nodes:
            for process in psutil.Process(node.pid).children(recursive=True):
                if "ray::RayTrainWorker" in " ".join(process.cmdline()):
                    return node
        return None


def clean() -> dict[str, str]:
    """This process's environment without what names a cluster."""
    return {name: value for name, value in os.environ.items() if name not in OURS}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def until(what: str, met: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not met():
        assert time.monotonic() < deadline, f"not within {PATIENCE_S} s: {what}"
        time.sleep(0.1)


def answers(url: str, token: str) -> int:
    """Live nodes; 0 before the dashboard answers."""
    try:
        found = requests.get(f"{url}/api/v0/nodes", headers={"Authorization": f"Bearer {token}"}, timeout=30).json()
    except (requests.ConnectionError, requests.exceptions.JSONDecodeError):
        return 0
    return sum(node["state"] == "ALIVE" for node in found["data"]["result"]["result"]) if found.get("data") else 0


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three nodes; the head has no CPU for others' work. Sockets want a short path."""
    root = Path(tempfile.mkdtemp(prefix="tt-", dir="/tmp"))
    made = Cluster(root, secrets.token_hex(32), free_port())
    (root / "token").touch(0o600)
    (root / "token").write_text(made.token)
    gcs = free_port()
    memory = "--object-store-memory=100000000"
    try:
        made.start("head", "--head", f"--port={gcs}", "--num-cpus=0", f"--dashboard-port={made.dashboard}",
                   f"--ray-client-server-port={free_port()}", memory)  # fmt: skip
        until("the head answers", lambda: answers(made.url, made.token) == 1)
        for name in ("one", "two"):
            made.start(name, f"--address=127.0.0.1:{gcs}", "--num-cpus=2", memory)
        until("three nodes", lambda: answers(made.url, made.token) == 3)
        yield made
    finally:
        for node in list(made.nodes):
            made.kill(node)
        shutil.rmtree(root)


@dataclass
class Laptop:
    """A folder with a recipe and its rows, outside of the cluster's folders."""

    folder: Path
    cluster: Cluster
    said: list[str] = field(default_factory=list)

    def begin(self, *words: str, token: Path | None = None) -> "subprocess.Popen[str]":
        given = {"TRIPTYCH_ADDRESS": self.cluster.url, "OMP_NUM_THREADS": "1"}
        given |= {"RAY_AUTH_TOKEN_PATH": str(token or self.cluster.root / "token")}
        return subprocess.Popen(
            [TRIPTYCH, *words],
            cwd=self.folder,
            env=clean() | given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: "subprocess.Popen[str]") -> tuple[int, str, str]:
        out, err = process.communicate(timeout=PATIENCE_S)
        self.said += [out, err]
        return process.returncode, out, err

    def call(self, *words: str, token: Path | None = None) -> tuple[int, str, str]:
        return self.end(self.begin(*words, token=token))


@pytest.fixture
def laptop(cluster: Cluster, tiny_model_dir: Path, tmp_path: Path) -> Laptop:
    """SFT of 150 short steps; the rows are named by a relative path, the base by an absolute one."""
    folder = tmp_path / "laptop"
    (folder / "data").mkdir(parents=True)
    rows = [{"prompt": f"Film {i}?", "response": f"The film is the {i}th."} for i in range(48)]
    (folder / "data" / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = {
        "name": "tiny",
        "model": {"base": str(tiny_model_dir), "dtype": "float32"},
        "stages": {
            "sft": {
                "kind": "sft",
                "method": {"name": "lora", "r": 4, "alpha": 8},
                "data": {"train": {"path": "data/sft.jsonl"}},
                "train": {"steps": 150, "checkpoint_every": 10, "batch": {"rows": 8, "micro_tokens": 256}},
            }
        },
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return Laptop(folder, cluster)


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


def test_a_wrong_request_says_so_and_leaves_nothing(laptop: Laptop, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text(secrets.token_hex(32))
    shared = f"storage.runs={tmp_path / 'shared'}"
    for words, token, said in (
        (["--set", shared], wrong, "refused the token"),
        (["--set", shared], tmp_path / "none", "there is none in RAY_AUTH_TOKEN_PATH"),
        (["--set", shared, "--address", f"http://127.0.0.1:{free_port()}"], None, "nothing answers"),
        ([], None, "storage.runs: 'runs' is a place of this machine"),
        (["--set", shared, "--set", "stages.sft.data.train.path=data/none.jsonl"], None, "no such file"),
        (["--set", "storage.runs=/proc/runs"], None, "storage.runs: /proc/runs cannot be written on the cluster"),
    ):
        code, out, err = laptop.call("run", "recipe.yaml", *words, token=token)
        assert (code, out) == (2, ""), err
        assert said in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
    jobs = requests.get(
        f"{laptop.cluster.url}/api/jobs/", headers={"Authorization": f"Bearer {laptop.cluster.token}"}, timeout=60
    ).json()
    assert [job for job in jobs if (job["metadata"] or {}).get("triptych")] == []
    assert not (tmp_path / "shared").exists()


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
    assert storage.verify(str(laptop.folder / "fetched")).digest == summary["sha256"]
    load_adapter(laptop.folder / "fetched", "lora")
    [listed] = json.loads(laptop.call("runs", "list", "--json")[1])
    assert (listed["job"], listed["runs"], listed["stages"]) == ("succeeded", str(shared), {"sft": "done"})
    assert_no_token(laptop)


def assert_no_token(laptop: Laptop) -> None:
    """Neither in what the laptop said, nor in the cluster's logs, nor in any command line."""
    token = laptop.cluster.token.encode()
    assert not any(laptop.cluster.token in text for text in laptop.said)
    lines = [path for path in Path("/proc").glob("[0-9]*/cmdline") if token in read(path)]
    assert lines == []
    logs = [path for path in laptop.cluster.root.rglob("*") if path.is_file() and path.name != "token"]
    assert [path for path in logs if token in read(path)] == []
    assert any("job-driver" in path.name for path in logs), "or this looked at the wrong place"


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError):
        return b""  # it has ended, or is no file of bytes
