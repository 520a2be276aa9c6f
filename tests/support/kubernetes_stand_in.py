"""A folder with a stand-in for kubectl, and what it is told to know."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).parent / "kubectl.py"
SERVICE = {"ray.io/originated-from-crd": "RayService"}
"""Label of the head's service that a RayService has."""


def stand_in(folder: Path, target: int) -> dict[str, str]:
    """The environment in which `kubectl` knows one cluster, in the context `lab`, and leads to that port."""
    program = folder / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -S {shlex.quote(str(PROGRAM))} "$@"\n')
    program.chmod(0o755)
    know(folder, head("lab-head-svc", "lab"))
    places = {"CALLS": str(folder / "calls"), "SERVICES": str(folder / "services"), "TARGET": str(target)}
    return places | {"PATH": f"{program.parent}{os.pathsep}{os.environ['PATH']}"}


def head(name: str, cluster: str, **labels: str) -> dict[str, Any]:
    """A head's service as KubeRay makes it."""
    return {
        "metadata": {"name": name, "labels": {"ray.io/node-type": "head", **labels}},
        "spec": {"selector": {"ray.io/cluster": cluster}, "ports": [{"name": "dashboard", "port": 8265}]},
    }


def know(folder: Path, *services: dict[str, Any]) -> None:
    """Let it answer with these services."""
    (folder / "services").write_text(json.dumps({"items": services}))


def calls(folder: Path) -> list[dict[str, Any]]:
    """Process id and words of each time it was called."""
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]
