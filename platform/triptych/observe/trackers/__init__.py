"""Experiment trackers: rows of a stage's metrics log are sent to TensorBoard, MLflow or Weights & Biases.

A thread sends them, so that a slow or absent server does not hold up training; rows that it does not take are sent
again with later ones. A resumed stage repeats the steps after its checkpoint: a tracker first gets the logged rows that
it lacks, and then no row that it has, so that every step is there once.
"""

import importlib.util
import logging
import queue
import threading
from collections.abc import Sequence
from types import TracebackType

from triptych import storage
from triptych.errors import UserError
from triptych.observe.trackers.tracked import MetricsRow, Tracked, Tracker, redacted, refused
from triptych.recipe import Recipe, TrackerName

__all__ = ["Tracked", "Trackers", "check_trackers"]

CLOSE_WITHIN_S = 60.0
"""Seconds that the end of a stage waits for rows still being sent."""

_PACKAGES: dict[TrackerName, tuple[str, ...]] = {
    "tensorboard": (),
    "mlflow": ("mlflow", "alembic"),
    "wandb": ("wandb",),
}
"""Packages, by import name, that each tracker's extra installs."""

log = logging.getLogger(__name__)


def check_trackers(recipe: Recipe) -> None:
    """Check that a run's trackers can be used, and make the experiment that its stages share.

    Raises:
        UserError: a tracker's package is not installed, or it has no place to write to.
    """
    runs = storage.absolute(recipe.storage.runs)
    for name in recipe.trackers:
        if any(importlib.util.find_spec(package) is None for package in _PACKAGES[name]):
            raise UserError(f"trackers: {name} is not installed; pip install 'triptych[{name}]'")
        if name == "tensorboard" and "://" in runs:
            raise UserError(
                f"trackers: tensorboard appends to files, which {runs} cannot do; "
                "allowed with an object store: mlflow, wandb"
            )
        if name == "mlflow":
            _make_experiment(runs)


class Trackers:
    """Trackers of one stage, as a context manager; an error that leaves it marks the stage's runs as failed."""

    def __init__(self, names: Sequence[TrackerName], tracked: Tracked) -> None:
        """Open the trackers. UserError if one cannot start."""
        self._trackers = {name: _open(name, tracked) for name in names}
        self._waiting: dict[TrackerName, list[MetricsRow]] = {name: list(tracked.rows) for name in names}
        self._rows: queue.SimpleQueue[MetricsRow | None] = queue.SimpleQueue()
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="trackers", daemon=True)

    def record(self, row: MetricsRow) -> None:
        """Send a row with its `step`; values that are not numbers or lists of numbers are left out."""
        self._rows.put(row)

    def __enter__(self) -> "Trackers":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._failed = kind is not None
        self._rows.put(None)
        self._thread.join(CLOSE_WITHIN_S)
        if self._thread.is_alive():
            log.warning("trackers: not everything was sent within %g s", CLOSE_WITHIN_S)

    def _run(self) -> None:
        self._send()
        while (row := self._rows.get()) is not None:
            for waiting in self._waiting.values():
                waiting.append(row)
            self._send()
        for name, tracker in self._trackers.items():
            try:
                tracker.close(failed=self._failed)
            except Exception as error:  # noqa: BLE001 - training goes on without its trackers
                log.warning("trackers: %s did not close: %s", name, redacted(error))

    def _send(self) -> None:
        for name, tracker in self._trackers.items():
            rows = [row for row in self._waiting[name] if row["step"] > tracker.last]
            try:
                if rows:
                    tracker.write(rows)
                    tracker.last = rows[-1]["step"]
            except Exception as error:  # noqa: BLE001 - training goes on without its trackers
                log.warning("trackers: %s did not take step %d: %s", name, rows[-1]["step"], redacted(error))
                self._waiting[name] = rows
            else:
                self._waiting[name] = []


def _open(name: TrackerName, tracked: Tracked) -> Tracker:
    """Open a tracker; its package is imported only here, since most are extras, and slow."""
    if name == "tensorboard":
        from triptych.observe.trackers.tensorboard import TensorBoard

        return TensorBoard(tracked)
    if name == "mlflow":
        from triptych.observe.trackers.mlflow import MLflow

        return MLflow(tracked)
    from triptych.observe.trackers.wandb import Wandb

    return Wandb(tracked)


def _make_experiment(runs: str) -> None:
    """Make MLflow's experiment, and its database, before two stages would make it at once."""
    from triptych.observe.trackers.mlflow import client, experiment

    with refused("mlflow"):
        experiment(client(runs))
