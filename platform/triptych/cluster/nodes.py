"""Facts about a cluster, found on its head: versions, nodes, and whether all nodes share a folder."""

import platform
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import triptych
from triptych.cluster.ray import connect
from triptych.cluster.remote_call import recipe_format

_TIMEOUT_S = 60.0


def cluster_facts(path: str | None) -> dict[str, Any]:
    """Facts about the cluster that RAY_ADDRESS names, as JSON.

    Args:
        path: folder to test. Adds `refused`, why this node cannot write there, or else `unseen`, the addresses of the
            nodes that do not see what this node writes there.
    """
    with connect():
        nodes = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        total = ray.cluster_resources()
        facts: dict[str, Any] = {
            "triptych": triptych.__version__,
            "format": recipe_format(),
            "python": platform.python_version(),
            "ray": ray.__version__,
            "nodes": len(nodes),
            "cpus": total.get("CPU", 0.0),
            "gpus": total.get("GPU", 0.0),
        }
        if path is not None:
            try:
                facts["unseen"] = _unseen(Path(path), nodes)
            except OSError as error:
                facts["refused"] = error.strerror or str(error)
    return facts


def _unseen(folder: Path, nodes: dict[str, str]) -> list[str]:
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / f".triptych-probe-{uuid.uuid4().hex}"
    probe.touch()
    try:
        answers = {
            address: _sees.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(probe)
            for node, address in nodes.items()
        }
        return [address for address, answer in answers.items() if not ray.get(answer, timeout=_TIMEOUT_S)]
    finally:
        probe.unlink(missing_ok=True)
        if made:
            with suppress(OSError):
                folder.rmdir()


@ray.remote(num_cpus=0)
def _sees(path: Path) -> bool:
    return path.exists()
