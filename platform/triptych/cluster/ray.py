"""Start or join Ray, and refuse what its cluster can never place."""

import logging
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from triptych.errors import RunError, UserError


@dataclass(frozen=True)
class Bundle:
    """`count` equal groups of resources that must each lie on one node, such as the engines of a rollout pool."""

    what: str
    count: int
    cpus: float
    gpus: float = 0.0

    def __str__(self) -> str:
        parts = [f"{self.cpus:g} CPU"] + [f"{self.gpus:g} GPU"] * (self.gpus > 0)
        return f"{self.what}: {self.count} x {' + '.join(parts)}"


@contextmanager
def connect(cpus: int | None = None, metrics_port: int | None = None) -> Iterator[None]:
    """A connection to Ray for the time of the block.

    Inside a process that is connected already, that connection is used and left as it is. Otherwise joins the cluster
    that `RAY_ADDRESS` names, or else starts one on this machine, with token authentication, `cpus` logical CPUs (None:
    as many as the machine has) and its metrics for Prometheus on `metrics_port`; it ends with the block.

    Errors: UserError where nothing answers at `RAY_ADDRESS`; RunError where Ray does not start.
    """
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            _reach(address)
            ray.init(address=address, **quiet)
        else:
            ray.init("local", num_cpus=cpus, include_dashboard=False, _metrics_export_port=metrics_port, **quiet)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        ray.shutdown()
        if address:
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster to join ({error}); unset it to run here") from error
        raise RunError(f"Ray did not start on this machine ({error}); `triptych doctor` says more") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raise OSError where no process listens at `host:port`; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()


def require(bundles: Sequence[Bundle]) -> None:
    """Raise UserError where the connected cluster, even if idle, cannot hold all the bundles at once.

    Compares sums with the cluster's totals and each bundle with the largest node. Whether the nodes can be packed is
    left to Ray; who waits for a placement gives up after a time.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for resource, asked in (("CPU", "cpus"), ("GPU", "gpus")):
        total = sum(node.get(resource, 0.0) for node in nodes)
        largest = max((node.get(resource, 0.0) for node in nodes), default=0.0)
        wanted = sum(bundle.count * getattr(bundle, asked) for bundle in bundles)
        listed = "; ".join(str(bundle) for bundle in bundles if getattr(bundle, asked) > 0)
        if wanted > total + 1e-6:
            raise UserError(f"{wanted:g} {resource}s are needed ({listed}), but the cluster has {total:g}")
        for bundle in bundles:
            if getattr(bundle, asked) > largest + 1e-6:
                raise UserError(f"no node has enough {resource}s for {bundle}; the largest has {largest:g}")
