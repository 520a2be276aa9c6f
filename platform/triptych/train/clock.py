"""A timer of the parts of a step, on the CPU or by CUDA events."""

import time
from collections import defaultdict
from itertools import pairwise

import torch


class Clock:
    """Seconds by part, each lap from the end of the one before.

    A GPU runs behind the program that drives it: its laps are marked by events on its stream.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self._on_gpu = device is not None and device.type == "cuda"
        self._parts: list[str] = []
        self._marks: list[float | torch.cuda.Event] = [self._mark()]

    def lap(self, part: str) -> None:
        self._parts.append(part)
        self._marks.append(self._mark())

    @property
    def seconds(self) -> dict[str, float]:
        """All laps so far; waits for the GPU."""
        found: dict[str, float] = defaultdict(float)
        for part, (start, end) in zip(self._parts, pairwise(self._marks), strict=True):
            if isinstance(start, torch.cuda.Event) and isinstance(end, torch.cuda.Event):
                end.synchronize()
                found[part] += start.elapsed_time(end) / 1000
            elif isinstance(start, float) and isinstance(end, float):
                found[part] += end - start
        return dict(found)

    def _mark(self) -> "float | torch.cuda.Event":
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
