"""Budget of a sweep: what its trials may cost together. When it is used up, the sweep ends, whatever trials do."""

import time
from typing import Any

from ray.tune import Stopper

from triptych.plan import requests
from triptych.recipe import Recipe, StageBase
from triptych.recipe.sweep import SweepBudget
from triptych.tune.record import Record


def devices_of(name: str, stage: StageBase) -> float:
    """GPUs, or shares of them, that a stage's workers and engines hold; where they hold none, these processes."""
    asked = requests(name, stage)
    return sum(one.count * one.gpus for one in asked) or float(sum(one.count for one in asked))


class Budget(Stopper):
    """Stopper that Tune asks after every event. Running trials are counted by the clock since their last report."""

    def __init__(self, recipe: Recipe, record: Record) -> None:
        assert recipe.sweep is not None
        self._limits: SweepBudget = recipe.sweep.budget
        self._record = record
        self._devices = devices_of(recipe.sweep.stage, recipe.trained[recipe.sweep.stage])
        self._since: dict[int, float] = {}

    def started(self, number: int) -> None:
        """Start a trial's clock, or restart it at a report."""
        self._since[number] = time.monotonic()

    def rested(self, number: int) -> None:
        """Stop the clock of a trial that is paused or has ended."""
        self._since.pop(number, None)

    def under_way(self, number: int) -> float:
        """Device-seconds of a trial since its last report; 0 if its clock is stopped."""
        since = self._since.get(number)
        return 0.0 if since is None else (time.monotonic() - since) * self._devices

    @property
    def spent(self) -> bool:
        """True once seconds or tokens are used up."""
        limits = self._limits
        if limits.tokens is not None and self._record.tokens >= limits.tokens:
            return True
        seconds = self._record.device_seconds + sum(map(self.under_way, self._since))
        return limits.device_seconds is not None and seconds >= limits.device_seconds

    @property
    def full(self) -> bool:
        """True once no further trial may begin."""
        trials = self._limits.trials
        return self.spent or (trials is not None and self._record.launched >= trials)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never stop one trial alone."""
        return False

    def stop_all(self) -> bool:
        """Stop all trials once the budget is used up."""
        return self.spent
