"""Progress of a run's stages: workers report to an actor, and the driver's terminal shows it."""

import threading
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

REFRESH_S = 0.5
LINE_EVERY_S = 10.0
"""Seconds between two lines of a stage when stderr is not a terminal."""
ANSWER_WITHIN_S = 5.0
"""Seconds to wait for the actor; if it does not answer, the display keeps what it has."""


@dataclass
class StageState:
    """Last report of a stage, and its first for the rate, since a resumed stage starts in the middle."""

    step: int
    total: int
    metrics: dict[str, float]
    updated: float
    """Seconds since the epoch, as the actor saw it."""
    first_step: int
    first_updated: float


class _Board:
    """State of the actor: the last report of each stage."""

    def __init__(self) -> None:
        self._stages: dict[str, StageState] = {}

    def update(self, stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        now = time.time()
        before = self._stages.get(stage)
        goes_on = before is not None and step > before.first_step
        first = (before.first_step, before.first_updated) if before is not None and goes_on else (step, now)
        self._stages[stage] = StageState(step, total, metrics, now, *first)

    def snapshot(self) -> dict[str, StageState]:
        return self._stages


class Progress:
    """Picklable handle that workers report to."""

    def __init__(self, actor: Any, label: str | None = None) -> None:
        self._actor, self._label = actor, label

    @classmethod
    def start(cls) -> "Progress":
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)  # other nodes may go
        return cls(ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote())

    def labelled(self, label: str) -> "Progress":
        """A handle of the same actor that reports every stage under this label."""
        return Progress(self._actor, label)

    def update(self, stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        """Report a step, without waiting for the actor.

        Args:
            step: steps done.
            total: steps of the whole stage.
            metrics: numbers to show.
        """
        self._actor.update.remote(self._label or stage, step, total, metrics)

    def snapshot(self) -> dict[str, StageState]:
        states: dict[str, StageState] = ray.get(self._actor.snapshot.remote(), timeout=ANSWER_WITHIN_S)
        return states


@dataclass
class ProgressDisplay:
    """Shows a run's progress on stderr while its block runs: bars on a terminal, lines elsewhere."""

    handle: Progress = field(default_factory=Progress.start)

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> "ProgressDisplay":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()  # whoever is inside Ray when it shuts down ends the process

    def _show(self) -> None:
        console = Console(stderr=True)
        if console.is_terminal:
            self._show_bars(console)
        else:
            self._show_lines(console)

    def _show_bars(self, console: Console) -> None:
        columns = (
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            TextColumn("{task.fields[metrics]}", style="dim"),
        )
        tasks: dict[str, TaskID] = {}
        with Bars(*columns, console=console) as bars:
            while True:
                ending = self._stop.wait(REFRESH_S)
                for stage, state in self._snapshot().items():
                    if stage not in tasks:
                        tasks[stage] = bars.add_task(stage, total=state.total, pace="", metrics="")
                    bars.update(
                        tasks[stage],
                        completed=state.step,
                        total=state.total,
                        pace=pace(state),
                        metrics=numbers(state),
                    )
                if ending:
                    return

    def _show_lines(self, console: Console) -> None:
        printed: dict[str, tuple[int, float]] = {}
        while True:
            ending = self._stop.wait(REFRESH_S)
            for stage, state in self._snapshot().items():
                step, when = printed.get(stage, (-1, -LINE_EVERY_S))
                due = time.monotonic() - when >= LINE_EVERY_S or state.step == state.total or ending
                if state.step != step and due:
                    printed[stage] = (state.step, time.monotonic())
                    line = f"{stage}: {state.step}/{state.total}  {pace(state)}  {numbers(state)}"
                    console.print(line, markup=False, highlight=False, soft_wrap=True)
            if ending:
                return

    def _snapshot(self) -> dict[str, StageState]:
        try:
            return self.handle.snapshot()
        except ray.exceptions.RayError:
            return {}  # the cluster is going down; the run itself says why


def pace(state: StageState) -> str:
    """Seconds a step and the time left; empty until two steps are known."""
    steps, seconds = state.step - state.first_step, state.updated - state.first_updated
    if steps <= 0 or seconds <= 0:
        return ""
    each = seconds / steps
    rate = f"{each:.1f} s/step" if each >= 1 else f"{1 / each:.1f} steps/s"
    left = round(each * (state.total - state.step))
    if left <= 0:
        return rate
    hours, rest = divmod(left, 3600)
    return f"{rate}, {hours}:{rest // 60:02d}:{rest % 60:02d} left"


def numbers(state: StageState) -> str:
    """Text of a stage's metrics."""
    return "  ".join(f"{name} {value:.4g}" for name, value in state.metrics.items())
