"""A cluster of a head and two workers, each with a folder of its own, and a laptop that knows its address and token."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import psutil
import requests

BIN = Path(sys.executable).parent
TRIPTYCH = str(BIN / "triptych")
PATIENCE_S = 500
NEWER = "9.9.9"
"""Version of the triptych that a test installs as a package."""
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
        fast |= {"RAY_worker_niceness": "0"}  # on a busy machine it would be last everywhere
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"  # jobs start `python`, as in an image or an activated venv
        log = (self.root / f"{name}.log").open("wb")
        environment = clean() | {"PATH": path, "RAY_AUTH_TOKEN_PATH": str(self.root / "token")} | fast
        environment |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"}
        self.nodes.append(
            subprocess.Popen(words, stdout=log, stderr=log, env=environment, cwd=self.root, start_new_session=True)
        )

    def has(self, nodes: int) -> bool:
        """Whether so many are alive; False, too, before the dashboard answers."""
        headers = {"Authorization": f"Bearer {self.token}"}
        try:
            found = requests.get(f"{self.url}/api/v0/nodes", headers=headers, timeout=30).json()
        except (requests.ConnectionError, requests.exceptions.JSONDecodeError):
            return False
        return bool(found.get("data")) and nodes == sum(
            node["state"] == "ALIVE" for node in found["data"]["result"]["result"]
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


@dataclass
class Laptop:
    """A folder with a recipe and its rows, outside of the cluster's folders."""

    folder: Path
    cluster: Cluster
    packages: Path | None = None
    """Its own triptych; None: the tests'."""
    said: list[str] = field(default_factory=list)

    def begin(
        self, *words: str, token: Path | None = None, environment: Mapping[str, str] = MappingProxyType({})
    ) -> "subprocess.Popen[str]":
        given = {"TRIPTYCH_ADDRESS": self.cluster.url, "OMP_NUM_THREADS": "1"}
        given |= {"RAY_AUTH_TOKEN_PATH": str(token or self.cluster.root / "token")}
        if self.packages is not None:
            given |= {"PYTHONPATH": str(self.packages)}
        return subprocess.Popen(
            [TRIPTYCH, *words],
            cwd=self.folder,
            env=clean() | given | dict(environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self, process: "subprocess.Popen[str]") -> tuple[int, str, str]:
        out, err = process.communicate(timeout=PATIENCE_S)
        self.said += [out, err]
        return process.returncode, out, err

    def call(
        self, *words: str, token: Path | None = None, environment: Mapping[str, str] = MappingProxyType({})
    ) -> tuple[int, str, str]:
        return self.end(self.begin(*words, token=token, environment=environment))


def assert_no_token(laptop: Laptop) -> None:
    """Neither in what the laptop said, nor in the cluster's logs, nor in any command line."""
    assert not any(laptop.cluster.token in text for text in laptop.said)
    assert_absent(laptop, laptop.cluster.token)


def assert_absent(laptop: Laptop, secret: str) -> None:
    """Neither in the cluster's logs, nor in any command line."""
    lines = [path for path in Path("/proc").glob("[0-9]*/cmdline") if secret.encode() in read(path)]
    assert lines == []
    logs = [path for path in laptop.cluster.root.rglob("*") if path.is_file() and path.name != "token"]
    assert [path for path in logs if secret.encode() in read(path)] == []
    assert any("job-driver" in path.name for path in logs), "or this looked at the wrong place"


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError):
        return b""  # it has ended, or is no file of bytes
