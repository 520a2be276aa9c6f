"""Start a Ray cluster on this machine, or join one."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import psutil
import ray
from ray.exceptions import RayError

from triptych.errors import RunError, UserError


@contextmanager
def connect(cpus: int | None = None, metrics_port: int | None = None, *, dashboard: bool = False) -> Iterator[None]:
    """A connection to Ray for the time of the block.

    If the process is connected already, that connection is used and left as it is. Otherwise joins the cluster that
    `RAY_ADDRESS` names, or else starts one on this machine with token authentication, which ends with the block.

    Args:
        cpus: logical CPUs of a cluster that is started; None: as many as the machine has.
        metrics_port: port of its metrics for Prometheus.
        dashboard: start its dashboard, without which Ray Train cannot see that a run's driver was stopped, and keeps
            the CPUs of its workers.

    Raises:
        UserError: nothing answers at `RAY_ADDRESS`.
        RunError: Ray does not start.
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
            # Ray Train would watch in a process of its own whether its nodes are about to be taken away.
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
            ray.init("local", num_cpus=cpus, include_dashboard=dashboard, _metrics_export_port=metrics_port, **quiet)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        ray.shutdown()
        if address:
            raise UserError(f"RAY_ADDRESS={address}: no Ray cluster to join ({error}); unset it to run here") from error
        raise RunError(f"Ray did not start on this machine ({error}); `triptych doctor` says more") from error
    try:
        yield
    finally:
        ray.shutdown()


def leave(code: int) -> NoReturn:
    """End this process at once, with its connection to Ray or the cluster that it started.

    Needed by a process with threads that wait inside Ray. Only `ray.shutdown` wakes them, and what they then do to
    clean up starts Ray again in the middle of the shutdown, which may end the process with exit code 1 a minute later.
    """
    with suppress(OSError):  # nobody may be reading any more
        sys.stdout.flush()
        sys.stderr.flush()
    me = psutil.Process()
    # Ray's daemons go with their parent. Their own children would stay for minutes, on the ports that they listen on;
    # and a daemon that is not stopped would answer the death of its children.
    daemons = me.children()
    for daemon in daemons:
        with suppress(psutil.NoSuchProcess):
            daemon.suspend()
    for process in me.children(recursive=True):
        if process not in daemons:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    os._exit(code)


def _reach(address: str) -> None:
    """Raise OSError where no process listens at `host:port`; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=10).close()
