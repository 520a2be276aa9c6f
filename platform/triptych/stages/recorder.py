"""Where the metrics rows of a stage go: its log, Prometheus, the terminal and the recipe's trackers."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any

from triptych.forward.process_memory import peak_memory
from triptych.observe.log import MetricsLog, read_metrics
from triptych.observe.metrics import RlMetrics, TrainMetrics
from triptych.observe.trackers import Tracked, Trackers
from triptych.stages.context import StageContext
from triptych.train.learners import RoleLearner


class Recorder:
    """A context. Rank 0 writes; on other ranks every call does nothing."""

    def __init__(
        self,
        ctx: StageContext[Any],
        gauges: type[TrainMetrics] | type[RlMetrics],
        rank: int,
        shown: Sequence[str],
        *,
        done: int,
        total: int,
    ) -> None:
        """`done`, `total`: steps; what the log has after `done` is dropped. `shown`: metrics for the terminal."""
        self._ctx, self._shown, self._total, self._writes = ctx, shown, total, rank == 0
        self._stack = ExitStack()
        if self._writes:
            self._log, self._gauges = MetricsLog(ctx.folder), gauges(ctx.recipe.name, ctx.name)
            self._log.truncate(done)
            logged = read_metrics(ctx.folder) if ctx.recipe.trackers else []
            tracked = Tracked(ctx.folder, ctx.recipe.name, ctx.name, ctx.recipe.model_dump(mode="json"), logged)
            self._trackers = Trackers(ctx.recipe.trackers, tracked)

    def __enter__(self) -> "Recorder":
        if self._writes:
            self._stack.enter_context(self._trackers)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def record(self, row: Mapping[str, Any]) -> None:
        """A row with its `step`."""
        if self._writes:
            self._log.add(dict(row))
            self._gauges.record(row)
            self._trackers.record(row)
            shown = {key: row[key] for key in self._shown if key in row}
            self._ctx.progress.update(self._ctx.name, row["step"], self._total, shown)

    def count(self, seconds: Mapping[str, float]) -> None:
        """`seconds_<part>` that no row will have, for Prometheus alone."""
        if self._writes:
            self._gauges.record(seconds)

    def flush(self, step: int) -> None:
        """Write the log up to `step`, before its checkpoint."""
        if self._writes:
            self._log.flush(step)


def memory(learner: RoleLearner) -> dict[str, Any]:
    """Peak memory of the worker with most, and how much of it came after its models were loaded. Collective."""
    device, loaded = learner.model.device, learner.loaded_bytes
    peaks = learner.group.table([peak_memory(device), peak_memory(device) - loaded], device)
    whole, grown = (max(column) for column in zip(*peaks, strict=True))
    return {"peak_memory_bytes": whole, "grown_memory_bytes": grown}
