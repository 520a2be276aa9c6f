"""What the steps of supervised training cost: time by part, tokens and model FLOPs a second, memory."""

import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from triptych.errors import UserError
from triptych.methods.flops import train_flops
from triptych.models.sizes import Sizes, sizes_of
from triptych.plan.machines import peak_flops
from triptych.stages.context import StageContext
from triptych.stages.recorder import memory
from triptych.train.batch import Batch
from triptych.train.learner import Learner, StepReport
from triptych.train.usage import real_tokens, token_counts

Row = dict[str, Any]

_LAST = ("learning_rate",)
_TOTAL = ("skipped",)
"""Metrics of a step of which a row has the last, or the sum; of others, the mean of those that are finite."""


class Meter:
    """Collects steps, and makes a row of the metrics log of them. Every rank has one.

    Its seconds are rank 0's. `data` is what training waits for its batches; a GPU's time is counted where it passes,
    not where it was asked for.
    """

    def __init__(self, ctx: StageContext[Any], learner: Learner) -> None:
        self._learner = learner
        self._method = ctx.stage.method
        self._sizes = _sizes(ctx)
        self._peak = _peak(learner.model.device, ctx.recipe.model.dtype)
        self._seconds: dict[str, float] = defaultdict(float)
        self._clear()

    def step(self, report: StepReport, batches: Sequence[Batch | None], started: float, loading: float) -> None:
        """A step since `started` (`time.perf_counter`), of which `loading` seconds made its batches."""
        self._metrics.append(report.metrics)
        present = [batch for batch in batches if batch is not None]
        self._tokens += sum(map(real_tokens, present))
        if self._sizes is not None:
            counts = (token_counts(batch, shared=self._learner.model.packing) for batch in present)
            flops = sum(train_flops(self._sizes, self._method, count) for count in counts)
            self._flops += flops * len(self._learner.strategy.parameters)  # an ensemble's members take a step each
        parts, whole = report.seconds | {"data": report.seconds["data"] + loading}, time.perf_counter() - started
        for part, seconds in (parts | {"other": whole - sum(parts.values())}).items():
            self._seconds[part] += max(seconds, 0.0)
        self._waited += report.seconds["communication"]
        self._whole += whole

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Seconds beside the steps; they count for the row that is made next."""
        started = time.perf_counter()
        yield
        self._seconds[part] += time.perf_counter() - started

    def row(self, step: int) -> Row:
        """The row of the steps since the last one, up to `step`. Collective."""
        busy = max(self._whole - self._waited, 1e-9)
        device = self._learner.model.device
        mine = [self._tokens, self._tokens / busy, self._flops, self._peak]
        tokens, rates, flops, peaks = zip(*self._learner.group.table(mine, device), strict=True)
        row = {"step": step, "tokens": sum(tokens), "tokens_per_second": sum(tokens) / self._whole}
        row |= {"worker_tokens_per_second": list(rates), "step_seconds": self._whole / len(self._metrics)}
        row |= _merged(self._metrics) | memory(self._learner)
        if sum(flops) > 0:
            row["model_flops_per_second"] = sum(flops) / self._whole
        if sum(flops) > 0 and min(peaks) > 0:
            row["mfu"] = row["model_flops_per_second"] / sum(peaks)
        row |= self.spent()
        self._clear()
        return row

    def spent(self) -> Row:
        """Seconds by part since the last row, as `seconds_<part>`; they are then forgotten."""
        seconds = {f"seconds_{part}": value for part, value in self._seconds.items()}
        self._seconds.clear()
        return seconds

    def _clear(self) -> None:
        self._metrics: list[dict[str, float]] = []
        self._whole, self._waited, self._tokens, self._flops = 0.0, 0.0, 0, 0.0


def _merged(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """One number of each metric of some steps, all of which have the same."""
    merged = {}
    for name in steps[-1]:
        values = [step[name] for step in steps]
        finite = [value for value in values if math.isfinite(value)]
        if name in _LAST:
            merged[name] = values[-1]
        elif name in _TOTAL:
            merged[name] = sum(values)
        else:
            merged[name] = sum(finite) / len(finite) if finite else math.nan
    return merged


def _sizes(ctx: StageContext[Any]) -> Sizes | None:
    """Of the base; None for a family whose FLOPs are not known."""
    config = json.loads((ctx.base_dir / "config.json").read_text(encoding="utf-8"))
    try:
        return sizes_of(config, ctx.recipe.model.base)
    except UserError:
        return None


def _peak(device: torch.device, dtype: str) -> float:
    """Peak FLOP/s of this rank's GPU; 0 where none is known, as of any CPU."""
    return (peak_flops(torch.cuda.get_device_name(device), dtype) or 0.0) if device.type == "cuda" else 0.0
