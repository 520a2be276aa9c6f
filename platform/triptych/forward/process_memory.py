"""Memory of this process: on a GPU what torch holds there, on a CPU all that is resident."""

import resource
from pathlib import Path

import torch


def peak_memory(device: torch.device) -> int:
    """Bytes at the peak: of tensors on a GPU, of the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def resident_memory(device: torch.device) -> int:
    """Bytes that are held now: by torch on a GPU, by the whole process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.memory_reserved(device)
    return _status("VmRSS")


def _status(field: str) -> int:
    """Bytes in a field of Linux's status of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
