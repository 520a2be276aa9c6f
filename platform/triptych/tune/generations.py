"""Population-based training: Tune's, with checkpoints that are really there to be exploited.

A trial's checkpoint for Tune is a pointer; the weights, moments and step lie in its run's folder. When the worst of a
generation go on from the best, the donor's checkpoint is copied into a run of their own, which begins there.
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
from triptych.tune.feasible import misfit
from triptych.tune.report_handler import ReportHandler, number_of
from triptych.tune.search import assignment_of


class Generations(PopulationBasedTraining):
    """All trials train for a generation, rest, and are compared; in turns where the cluster is small."""

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
        """Tune's: what becomes of the trial, and after the last of a generation, of all."""
        if not self._reports.handle(trial, result):
            return TrialScheduler.CONTINUE
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision != TrialScheduler.CONTINUE:
            self._reports.pause(number_of(trial))
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> None:
        """Tune's. The others may have waited for this one."""
        super().on_trial_complete(tune_controller, trial, result)
        self._go_on_without(tune_controller, trial)

    def on_trial_error(self, tune_controller: Any, trial: TuneTrial) -> None:
        """Tune's. The others may have waited for this one."""
        super().on_trial_error(tune_controller, trial)
        self._go_on_without(tune_controller, trial)

    def _go_on_without(self, tune_controller: Any, gone: TuneTrial) -> None:
        left = [trial for trial in tune_controller.get_live_trials() if trial is not gone]
        times = [self._trial_state[trial].last_train_time for trial in left]
        if times and min(times) >= self._next_perturbation_sync:
            self._next_perturbation_sync += self._every

    def _get_new_config(self, trial: TuneTrial, trial_to_clone: TuneTrial) -> tuple[dict[str, Any], dict[str, Any]]:
        """Copy the donor's checkpoint into a new run of the trial, and say what it is to be trained with."""
        number, donor = number_of(trial), number_of(trial_to_clone)
        checkpoint: Any = self._trial_state[trial_to_clone].last_checkpoint
        pointer = read_pointer(checkpoint)
        values = self._explored(number, self._reports.record.trials[donor].values, pointer["step"])
        began = self._reports.record.exploit(number, donor, pointer["step"], values)
        source, target = (
            storage.join(self._reports.record.url, run, "stages", self._sweep.stage, "checkpoints")
            for run in (pointer["run"], began.run)
        )
        copy(source, target, pointer["step"])
        return {"assignment": asdict(assignment_of(began))}, {}

    def _explored(self, number: int, values: Values, step: int) -> dict[str, Any]:
        """The donor's values, some drawn anew, the others moved; the donor's own where those cannot be."""
        chance = random.Random(storage.digest_of([self._recipe.seed, number, step]))
        pbt = self._sweep.pbt
        found = {
            key: drawn(self._sweep.space[key], chance)
            if chance.random() < pbt.resample
            else moved(self._sweep.space[key], value, chance, pbt.factors)
            for key, value in values.items()
        }
        return dict(values) if misfit(self._recipe, found, self._machine) else found


def drawn(dimension: Dimension, chance: random.Random) -> Any:
    """Any value of a dimension."""
    if dimension.choice is not None:
        return chance.choice(dimension.choice)
    low, high = dimension.edges()
    if dimension.loguniform or dimension.logint:
        found = math.exp(chance.uniform(math.log(low), math.log(high)))
    else:
        found = chance.uniform(low, high)
    return _within(dimension, found)


def moved(dimension: Dimension, value: Any, chance: random.Random, factors: tuple[float, float]) -> Any:
    """A neighbour of a value: the next choice on either side, or a number times one of the factors."""
    if dimension.choice is None:
        return _within(dimension, value * chance.choice(factors))
    place = dimension.choice.index(value) + chance.choice((-1, 1))
    return dimension.choice[min(max(place, 0), len(dimension.choice) - 1)]


def _within(dimension: Dimension, number: float) -> int | float:
    low, high = dimension.edges()
    bounded = min(max(number, low), high)
    return round(bounded) if dimension.int or dimension.logint else bounded
