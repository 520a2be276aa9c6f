"""Ask-and-tell search with Optuna's samplers.

Each point is drawn from a seed of its own and the trials so far, so that an interrupted sweep continues with the points
that it would have tried without the interruption.
"""

import itertools
import json
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from triptych import storage
from triptych.observe.sweeps import TrialView
from triptych.recipe import Dimension, Sweep

_STARTUP = 0.25
"""Share of a budget of trials that TPE draws at random first; 10 trials where the budget counts none."""
_STATES = {"done": TrialState.COMPLETE, "stopped": TrialState.PRUNED, "cut": TrialState.PRUNED}


class Points:
    """Asks Optuna for points, and tells it the results of trials as they end."""

    def __init__(self, sweep: Sweep, seed: int) -> None:
        self._sweep, self._seed = sweep, seed
        self._grid = grid(sweep) if sweep.search == "grid" else None
        self.study = _study(sweep, RandomSampler())
        self._asked: dict[int, optuna.Trial] = {}

    def ask(self, number: int) -> dict[str, Any] | None:
        """The point of trial `number`, counted from 1; None if a grid has no more."""
        if self._grid is not None:
            return self._grid[number - 1] if number <= len(self._grid) else None
        self.study.sampler = _sampler(self._sweep, int(storage.digest_of([self._seed, number])[:8], 16))
        trial = self._asked[number] = self.study.ask()
        return _suggest(self._sweep, trial)

    def begun(self, number: int, values: dict[str, Any]) -> None:
        """Tell Optuna of a trial of an earlier session that has not ended."""
        if self._grid is None:
            self.study.enqueue_trial(_parameters(values, self._sweep))
            self._asked[number] = self.study.ask()
            _suggest(self._sweep, self._asked[number])

    def tell(self, trial: TrialView) -> None:
        """Tell Optuna the result of a trial that ended, in this session or an earlier one."""
        if self._grid is not None:
            return
        results = [[r["metrics"].get(o.metric) for o in self._sweep.objectives] for r in trial.reports]
        complete = [values for values in results if all(v is not None and math.isfinite(v) for v in values)]
        state = _STATES.get(trial.status, TrialState.FAIL) if complete else TrialState.FAIL
        one = len(self._sweep.objectives) == 1
        if state is TrialState.PRUNED and not one:
            state = TrialState.FAIL  # Optuna prunes by one objective only
        steps = {int(r["step"]): v[0] for r, v in zip(trial.reports, results, strict=True) if one and v in complete}
        if asked := self._asked.pop(trial.number, None):
            for step, value in steps.items():
                asked.report(value, step)
            self.study.tell(asked, complete[-1] if state is TrialState.COMPLETE else None, state)
            return
        values = _parameters(trial.values, self._sweep)
        self.study.add_trial(
            optuna.trial.create_trial(
                state=state,
                values=complete[-1] if state is TrialState.COMPLETE else None,
                params=values,
                distributions={key: distribution(self._sweep.space[key]) for key in values},
                intermediate_values=steps,
            )
        )


def grid(sweep: Sweep) -> list[dict[str, Any]]:
    """Every point of a space of choices, once; keys whose condition does not hold are left out."""

    def points() -> Iterator[dict[str, Any]]:
        for chosen in itertools.product(*(dimension.choice or () for dimension in sweep.space.values())):
            values: dict[str, Any] = {}
            for (key, dimension), value in zip(sweep.space.items(), chosen, strict=True):
                if dimension.holds(values):
                    values[key] = value
            yield values

    return _each_once(points())


def _each_once(points: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return list({json.dumps(values): values for values in points}.values())


def draw(sweep: Sweep, seed: int, count: int) -> list[dict[str, Any]]:
    """Draw `count` random points, without duplicates; all points of a grid."""
    if sweep.search == "grid":
        return grid(sweep)
    study = _study(sweep, RandomSampler(seed=seed))
    return _each_once(_suggest(sweep, study.ask()) for _ in range(count))


def distribution(dimension: Dimension) -> BaseDistribution:
    """Optuna's distribution of a dimension; choices are encoded as JSON."""
    if dimension.choice is not None:
        return CategoricalDistribution([json.dumps(value) for value in dimension.choice])
    if numbers := dimension.uniform or dimension.loguniform:
        return FloatDistribution(*numbers, log=dimension.loguniform is not None)
    wholes = dimension.int or dimension.logint
    assert wholes is not None
    return IntDistribution(*wholes, log=dimension.logint is not None)


def _study(sweep: Sweep, sampler: BaseSampler) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    ways = [StudyDirection.MINIMIZE if o.mode == "min" else StudyDirection.MAXIMIZE for o in sweep.objectives]
    return optuna.create_study(directions=ways, sampler=sampler)


def _suggest(sweep: Sweep, trial: optuna.Trial) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, dimension in sweep.space.items():
        if dimension.holds(values):
            values[key] = _value(trial, key, distribution(dimension))
    return values


def _value(trial: optuna.Trial, key: str, dimension: BaseDistribution) -> Any:
    if isinstance(dimension, FloatDistribution):
        return trial.suggest_float(key, dimension.low, dimension.high, log=dimension.log)
    if isinstance(dimension, IntDistribution):
        return trial.suggest_int(key, dimension.low, dimension.high, log=dimension.log)
    assert isinstance(dimension, CategoricalDistribution)
    return json.loads(str(trial.suggest_categorical(key, dimension.choices)))


def _parameters(values: dict[str, Any], sweep: Sweep) -> dict[str, Any]:
    """A point as Optuna's parameters."""
    return {key: json.dumps(v) if sweep.space[key].choice is not None else v for key, v in values.items()}


def _sampler(sweep: Sweep, seed: int) -> BaseSampler:
    if sweep.search == "random":
        return RandomSampler(seed=seed)
    if sweep.search == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(4, round((sweep.budget.trials or 40) / 4)))
    startup = max(3, round(_STARTUP * sweep.budget.trials)) if sweep.budget.trials else 10
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, n_startup_trials=startup, multivariate=True, group=True)
