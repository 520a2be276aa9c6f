"""Population-based training (Jaderberg et al. 2017, arXiv 1711.09846) by Tune, over checkpoints of Triptych's runs.

A trial's checkpoint for Tune is a pointer; weights, optimizer state and step lie in its run's folder. When a trial of
the worst quantile exploits one of the best, the donor's checkpoint is copied into a new run, which begins there.
"""

import math
import random
from dataclasses import asdict
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import PopulationBasedTraining, TrialScheduler

from triptych import storage
from triptych.plan import Machine
from triptych.recipe import Dimension, Recipe, Values
from triptych.train.checkpoint import copy
from triptych.tune.driver import read_pointer
from triptych.tune.feasible import reason_infeasible
from triptych.tune.report_handler import ReportHandler, number_of
from triptych.tune.search import assignment_of


class PopulationBased(PopulationBasedTraining):
    """Tune's synchronous PBT: all trials train `every` steps, pause, and are compared; in turns on a small cluster."""

    def __init__(self, recipe: Recipe, reports: ReportHandler, machine: Machine, every: int) -> None:
        assert recipe.sweep is not None
        self._recipe, self._sweep, self._reports, self._machine = recipe, recipe.sweep, reports, machine
        self._every = every
        super().__init__(
            time_attr="step",
            metric="score",
            mode=recipe.sweep.objectives[0].mode,
            perturbation_interval=every,
            quantile_fraction=recipe.sweep.pbt.quantile,
            custom_explore_fn=dict,  # `_get_new_config` explores
            log_config=False,
            synch=True,
        )

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Tune's hook: record the report, and decide; the last report of an interval decides for all trials."""
        if not self._reports.handle(trial, result):
            return TrialScheduler.CONTINUE
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision != TrialScheduler.CONTINUE:
            self._reports.pause(number_of(trial))
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Tune's hook: the others may have waited for this trial."""
        super().on_trial_complete(tune_controller, trial, result)
        self._continue_without(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Tune's hook: the others may have waited for this trial."""
        super().on_trial_error(tune_controller, trial)
        self._continue_without(tune_controller, trial)

    def _continue_without(self, tune_controller: Any, gone: TuneTrial) -> None:
        """Move the next comparison on if all trials that are left have reached it, or Tune leaves them paused."""
        left = [trial for trial in tune_controller.get_live_trials() if trial is not gone]
        times = [self._trial_state[trial].last_train_time for trial in left]
        if times and min(times) >= self._next_perturbation_sync:
            self._next_perturbation_sync += self._every

    def _get_new_config(self, trial: TuneTrial, trial_to_clone: TuneTrial) -> tuple[dict[str, Any], dict[str, Any]]:
        """Copy the donor's checkpoint into a new run of the trial, and give its new values."""
        number, donor = number_of(trial), number_of(trial_to_clone)
        checkpoint: Any = self._trial_state[trial_to_clone].last_checkpoint
        pointer = read_pointer(checkpoint)
        values = self._explored_values(number, self._reports.record.trials[donor].values, pointer["step"])
        began = self._reports.record.exploit(number, donor, pointer["step"], values)
        source, target = (
            storage.join(self._reports.record.url, run, "stages", self._sweep.stage, "checkpoints")
            for run in (pointer["run"], began.run)
        )
        copy(source, target, pointer["step"])
        return {"assignment": asdict(assignment_of(began))}, {}

    def _explored_values(self, number: int, values: Values, step: int) -> dict[str, Any]:
        """The donor's values, each resampled or perturbed; unchanged if the result is infeasible."""
        chance = random.Random(storage.digest_of([self._recipe.seed, number, step]))
        pbt = self._sweep.pbt
        found = {
            key: resample(self._sweep.space[key], chance)
            if chance.random() < pbt.resample
            else perturb(self._sweep.space[key], value, chance, pbt.factors)
            for key, value in values.items()
        }
        return dict(values) if reason_infeasible(self._recipe, found, self._machine) else found


def resample(dimension: Dimension, chance: random.Random) -> Any:
    """Draw a value of a dimension."""
    if dimension.choice is not None:
        return chance.choice(dimension.choice)
    low, high = dimension.edges()
    if dimension.loguniform or dimension.logint:
        found = math.exp(chance.uniform(math.log(low), math.log(high)))
    else:
        found = chance.uniform(low, high)
    return _within(dimension, found)


def perturb(dimension: Dimension, value: Any, chance: random.Random, factors: tuple[float, float]) -> Any:
    """Perturb a value: the next choice on either side, or the number times one of the factors, within the edges."""
    if dimension.choice is None:
        return _within(dimension, value * chance.choice(factors))
    place = dimension.choice.index(value) + chance.choice((-1, 1))
    return dimension.choice[min(max(place, 0), len(dimension.choice) - 1)]


def _within(dimension: Dimension, number: float) -> int | float:
    low, high = dimension.edges()
    bounded = min(max(number, low), high)
    return round(bounded) if dimension.int or dimension.logint else bounded
