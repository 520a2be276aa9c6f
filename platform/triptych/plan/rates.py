"""Speed of a machine by kind of operation: measured (kept by `triptych plan`), or else assumed."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.cache import cache_dir
from triptych.plan.machines import Gpu
from triptych.plan.processor import processor
from triptych.plan.workload import AMOUNTS, Workload

_GPU_PRODUCTS, _GPU_ATTENTION = 0.54, 0.27
"""Share of a GPU's peak FLOP/s that training sustains in matrix products, and in attention; measured on an H200."""
_GPU_READ, _GPU_STREAM = 0.8, 0.27
"""Share of a GPU's memory bandwidth sustained in products, and between them in short kernels; measured on an H200."""
_GPU_LOGIT_BYTES = 24
_LAUNCH = 2.5e-5
"""Seconds of Python per operation, autograd and autocast included; measured beside an H200."""

_FORMAT = 2
"""Version of the file of kept rates; raised where the same measurements would give another fit."""

Costs = Mapping[str, float]
"""Seconds per unit of each amount of a `Workload`."""


@dataclass(frozen=True)
class Rates:
    """Speed of one thread of a processor, or of a GPU."""

    costs: Mapping[str, Costs]
    """Costs by dtype of the computation."""
    speedup: Mapping[int, float]
    """Number of threads -> speed relative to one thread."""
    launches: bool = False
    """Small operations are queued beside the others, as on a GPU: the slower of both counts."""

    def seconds(self, work: Workload, dtype: str, threads: int = 1) -> float:
        """Seconds that a workload takes."""
        costs = self.costs[dtype]
        parts = {name: getattr(work, name) * costs[name] for name in AMOUNTS}
        queued = parts.pop("operations")
        busy = sum(parts.values())
        return max(busy, queued) if self.launches else (busy + queued) / self._times(threads)

    def _times(self, threads: int) -> float:
        """Speed relative to one thread: linear up to the most threads measured, constant beyond."""
        most = max(self.speedup)
        if threads <= 1 or most == 1:
            return 1.0
        return 1 + (self.speedup[most] - 1) * (min(threads, most) - 1) / (most - 1)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "costs": {dtype: dict(costs) for dtype, costs in self.costs.items()},
            "speedup": {str(threads): times for threads, times in self.speedup.items()},
        }

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> "Rates":
        """Rates of a processor, read from what `as_dict` gives."""
        return cls(record["costs"], {int(threads): float(times) for threads, times in record["speedup"].items()})


def kept_rates() -> Rates | None:
    """Rates measured on this machine before; None where there are none."""
    file = _file()
    return Rates.from_dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else None


def keep_rates(rates: Rates) -> None:
    """Keep this machine's measured rates in the cache folder."""
    file = _file()
    staged = file.with_suffix(f".{os.getpid()}")
    staged.write_text(json.dumps(rates.as_dict(), indent=2), encoding="utf-8")
    staged.replace(file)


def _file() -> Path:
    name = "".join(letter if letter.isalnum() else "-" for letter in processor())
    return cache_dir("rates") / f"{name}-{len(os.sched_getaffinity(0))}-v{_FORMAT}.json"


def of_gpu(gpu: Gpu) -> Rates:
    """Rates of a GPU, derived from its data sheet."""

    def costs(dtype: str) -> Costs:
        return {
            "product_flops": 1 / (_GPU_PRODUCTS * gpu.flops[dtype]),
            "product_bytes": 1 / (_GPU_READ * gpu.bandwidth),
            "products": 0.0,
            "attention_flops": 1 / (_GPU_ATTENTION * gpu.flops[dtype]),
            "stream_bytes": 1 / (_GPU_STREAM * gpu.bandwidth),
            "logits": _GPU_LOGIT_BYTES / (_GPU_STREAM * gpu.bandwidth),
            "operations": _LAUNCH,
        }

    return Rates({dtype: costs(dtype) for dtype in gpu.flops}, {1: 1.0}, launches=True)


def _cpu(flops: float, attention: float, stream: float) -> Costs:
    return {
        "product_flops": 1 / flops,
        "product_bytes": 2.2e-11,
        "products": 1.2e-5,
        "attention_flops": 1 / attention,
        "stream_bytes": 1 / stream,
        "logits": 4.4e-9,
        "operations": 1.5e-5,
    }


CPU = Rates(
    {
        "float32": _cpu(7.9e10, 3.5e10, 1.5e10),
        "bfloat16": _cpu(1.5e11, 7.2e10, 2.8e10),
        "float16": _cpu(2e10, 1e10, 1e10),
    },
    {1: 1.0, 64: 48.0},
)
"""Assumed rates: a server core with AVX-512 bf16 as measured; its float16, which few cores support, by guess."""
