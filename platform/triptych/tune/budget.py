"""What the trials may cost together; the end of it ends the sweep, whatever its trials are doing."""

import time
from typing import Any

from ray.tune import Stopper

from triptych.recipe import Recipe
from triptych.recipe.sweep import SweepBudget
from triptych.tune.record import Record


class Budget(Stopper):
    """Tune asks it all the time. Trials under way are counted by the clock since their last report."""

    def __init__(self, recipe: Recipe, record: Record) -> None:
        assert recipe.sweep is not None
        self._limits: SweepBudget = recipe.sweep.budget
        self._record = record
        workers = recipe.trained[recipe.sweep.stage].workers
        self._devices = workers.count * (workers.gpus or 1.0)
        self._since: dict[int, float] = {}

    def started(self, number: int) -> None:
        """A trial is under way, or has just reported."""
        self._since[number] = time.monotonic()

    def rested(self, number: int) -> None:
        """A trial is paused, or over."""
        self._since.pop(number, None)

    def under_way(self, number: int) -> float:
        """Device-seconds of a trial that no report has told of yet."""
        since = self._since.get(number)
        return 0.0 if since is None else (time.monotonic() - since) * self._devices

    @property
    def spent(self) -> bool:
        """Whether seconds or tokens are used up."""
        limits = self._limits
        if limits.tokens is not None and self._record.tokens >= limits.tokens:
            return True
        seconds = self._record.device_seconds + sum(map(self.under_way, self._since))
        return limits.device_seconds is not None and seconds >= limits.device_seconds

    @property
    def full(self) -> bool:
        """Whether no further trial may begin."""
        trials = self._limits.trials
        return self.spent or (trials is not None and self._record.launched >= trials)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never one trial alone."""
        return False

    def stop_all(self) -> bool:
        """Whether all trials have to end."""
        return self.spent
