"""A real Prometheus with our own configuration and rules beside a run, and what each panel shows of it."""

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

CONFIG = Path(__file__).parents[2] / "deploy" / "prometheus" / "laptop.yaml"
Line = tuple[dict[str, str], list[tuple[float, float]]]
"""Labels, and (second, value) in order."""


@dataclass(frozen=True)
class Prometheus:
    """One that answers at `url`."""

    url: str

    def ask(self, path: str, **parameters: str | float) -> Any:
        """The data of an answer of its API. Errors: AssertionError with Prometheus' words."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters, timeout=30).json()
        assert answer["status"] == "success", f"{parameters}: {answer['error']}"
        return answer["data"]

    def lines(self, expression: str, start: float, end: float, step: float) -> list[Line]:
        """The series of an expression between two times, where they are numbers."""
        found = self.ask("query_range", query=expression, start=start, end=end, step=step)["result"]
        lines = [(one["metric"], [(at, float(text)) for at, text in one["values"] if text != "NaN"]) for one in found]
        return [line for line in lines if line[1]]

    def wait_for(self, expression: str) -> None:
        """Returns once it has numbers."""
        started = time.time()
        while not self.lines(expression, started - 60, time.time(), 1):
            assert time.time() < started + 60, f"no data: {expression}"
            time.sleep(0.2)

    def firing(self) -> set[str]:
        """The alerts that fire now."""
        return {one["labels"]["alertname"] for one in self.ask("alerts")["alerts"] if one["state"] == "firing"}


@contextmanager
def prometheus(folder: Path, metrics_port: int, every: str) -> Iterator[Prometheus | None]:
    """Prometheus with the laptop's configuration, but for the port that it scrapes and how often; data in `folder`.

    None where it is not installed.
    """
    program = shutil.which("prometheus")
    if program is None:
        yield None
        return
    config = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    config["global"] |= {"scrape_interval": every, "evaluation_interval": every}
    config["rule_files"] = [str((CONFIG.parent / file).resolve()) for file in config["rule_files"]]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{metrics_port}"]}]
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    url = f"http://127.0.0.1:{free_port()}"
    words = [
        program,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={url.removeprefix('http://')}",
    ]
    with (folder / "prometheus.log").open("wb") as log, subprocess.Popen(words, stderr=log) as process:
        try:
            _wait(process, url, folder)
            yield Prometheus(url)
        finally:
            process.terminate()


def _wait(process: "subprocess.Popen[bytes]", url: str, folder: Path) -> None:
    deadline = time.monotonic() + 30
    while True:
        try:
            if httpx.get(f"{url}/-/ready").is_success:
                return
        except httpx.TransportError:
            pass
        assert process.poll() is None, (folder / "prometheus.log").read_text(encoding="utf-8")
        assert time.monotonic() < deadline, "Prometheus is not ready"
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
