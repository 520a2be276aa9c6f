"""How long a person waits, from a wheel and an empty virtual environment to a job that trains on a cluster.

    python tests/bench/install.py --out build/bench/install.json

The wheel, the lock's packages (those of development apart) and a cluster of one node with a token, all in a temporary
folder with empty caches; the job is a few steps of the example's base model, sent as from a laptop. One go, on whatever
the package index gives.
"""

import argparse
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import yaml
from rich.console import Console
from rich.table import Table

from harness import machine

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements" / "cpu.lock"
STEPS = 4
Times = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "install.json")
    out: Path = parser.parse_args().out
    times: Times = {}
    with tempfile.TemporaryDirectory(prefix="tt-") as folder:  # sockets want a short path
        root = Path(folder)
        install(root, times)
        with cluster(root, times) as address:
            submit(root, address, times)
    show(times)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"seconds": times, "machine": machine()}, indent=2) + "\n", encoding="utf-8")


@contextmanager
def timed(times: Times, name: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    times[name] = time.monotonic() - started
    print(f"{name}: {times[name]:.1f} s", file=sys.stderr, flush=True)


def install(root: Path, times: Times) -> None:
    """Build the wheel, then install it beside the lock's packages in `root/venv`."""
    with timed(times, "wheel built"):
        words = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(root), str(ROOT)]
        subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    pins = subprocess.run(
        [sys.executable, "deploy/images/runtime.py", LOCK], cwd=ROOT, check=True, capture_output=True, text=True
    )
    (root / "runtime.lock").write_text(pins.stdout, encoding="utf-8")
    with timed(times, "empty environment"):
        subprocess.run([sys.executable, "-m", "venv", root / "venv"], check=True)
    pip: list[str | Path] = [root / "venv/bin/pip", "install", "--quiet", "--no-cache-dir", "--no-deps"]
    with timed(times, "packages of the lock"):
        subprocess.run([*pip, "-r", root / "runtime.lock"], check=True)
    with timed(times, "pip install of the wheel"):
        subprocess.run([*pip, *root.glob("*.whl")], check=True)


@contextmanager
def cluster(root: Path, times: Times) -> Iterator[str]:
    """`ray start` with a token, until the block ends; its address."""
    token = root / "token"
    token.touch(0o600)
    token.write_text(secrets.token_hex(32), encoding="utf-8")
    dashboard, *others = (free_port() for _ in range(5))
    names = ("--port", "--ray-client-server-port", "--dashboard-agent-listen-port", "--metrics-export-port")
    words = [f"{name}={port}" for name, port in zip(names, others, strict=True)]
    words += ["--head", "--block", "--num-cpus=2", f"--temp-dir={root / 'ray'}", f"--dashboard-port={dashboard}"]
    with (root / "ray.log").open("wb") as log:
        process = subprocess.Popen([root / "venv/bin/ray", "start", *words], stdout=log, stderr=log, env=clean(root))
    try:
        with timed(times, "cluster answers"):
            wait(process, f"http://127.0.0.1:{dashboard}/api/version", token.read_text(encoding="utf-8"), log.name)
        yield f"http://127.0.0.1:{dashboard}"
    finally:
        process.terminate()  # Ray's own handler ends the node
        process.wait()


def wait(process: "subprocess.Popen[bytes]", url: str, token: str, log: str) -> None:
    while True:
        try:
            if httpx.get(url, headers={"Authorization": f"Bearer {token}"}).is_success:
                return
        except httpx.TransportError:
            pass
        if process.poll() is not None:
            raise RuntimeError(f"Ray did not start:\n{Path(log).read_text(encoding='utf-8')}")
        time.sleep(0.1)


def submit(root: Path, address: str, times: Times) -> None:
    """Send a recipe as from a laptop, and follow it to its end."""
    rows = [{"prompt": f"Film {i}?", "response": f"The film is the {i}th of the year."} for i in range(32)]
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    train = {"steps": STEPS, "batch": {"rows": 4}}
    stage = {"kind": "sft", "data": {"train": {"path": "rows.jsonl"}}, "train": train}
    recipe = {"name": "first", "storage": {"runs": str(root / "runs")}, "stages": {"sft": stage}}
    recipe["model"] = {"base": "smollm2-135m-instruct"}
    (root / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    words = [str(root / "venv/bin/triptych"), "run", "recipe.yaml", "--address", address]
    started, before, said = time.monotonic(), 0.0, ""
    waiting = {"recipe checked": "sending the recipe", "first step": f"sft: 1/{STEPS}", "last step": f"sft: {STEPS}/"}
    with subprocess.Popen(words, cwd=root, env=clean(root), stderr=subprocess.PIPE, text=True) as process:
        for line in process.stderr or ():
            said += line
            for name, sign in list(waiting.items()):
                if re.search(sign, line):
                    times[name], before = time.monotonic() - started - before, time.monotonic() - started
                    del waiting[name]
    times["adapter registered"] = time.monotonic() - started - before
    if process.returncode or waiting:
        raise RuntimeError(f"the run failed, or never came to: {', '.join(waiting)}\n{said}")


def clean(root: Path) -> dict[str, str]:
    """An environment that knows the new installation, its own caches and the token, and nothing of another."""
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "TMPDIR") if name in os.environ}
    given = {"PATH": f"{root / 'venv/bin'}{os.pathsep}{os.environ['PATH']}", "TRIPTYCH_CACHE": str(root / "cache")}
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(root / "token"), "RAY_USAGE_STATS_ENABLED": "0"}
    return kept | given | ray


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def show(times: Times) -> None:
    table = Table("stage", "seconds", title="From a wheel to a job that trains on a cluster")
    table.columns[1].justify = "right"
    for name, seconds in times.items():
        table.add_row(name, f"{seconds:.1f}")
    table.add_section()
    table.add_row("from the empty environment to the first step", f"{until_first_step(times):.1f}")
    Console().print(table)
    Console(stderr=True).print(f"machine: {machine()['cpu']}, {machine()['cores']} cores", highlight=False)


def until_first_step(times: Times) -> float:
    apart = ("wheel built", "last step", "adapter registered")
    return sum(seconds for name, seconds in times.items() if name not in apart)


if __name__ == "__main__":
    main()
