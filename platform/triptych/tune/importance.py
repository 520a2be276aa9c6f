"""Importance of each key of a space for the first objective."""

import warnings
from collections.abc import Mapping
from dataclasses import replace

import optuna
from optuna.importance import PedAnovaImportanceEvaluator

from triptych.observe.sweeps import SweepView
from triptych.recipe import Sweep
from triptych.tune.points import Points

LEAST = 4
"""Fewest trials with a result that give an importance."""


def importance(found: SweepView) -> Mapping[str, float]:
    """Share of each key that all compared trials have; empty if there are fewer than LEAST trials.

    PED-ANOVA (Watanabe et al. 2023, arXiv 2304.10255): how far the best quarter's values differ from all values.
    """
    if len(found.comparable) < LEAST:
        return {}
    one: Sweep = found.sweep.model_copy(update={"objective": found.sweep.objectives[0], "search": "random"})
    points = Points(one, 0)
    for trial in found.comparable:
        points.tell(replace(trial, status="done"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the evaluator is called experimental, and few trials are said to be few
        evaluator = PedAnovaImportanceEvaluator(target_quantile=0.25)
        shares: dict[str, float] = optuna.importance.get_param_importances(points.study, evaluator=evaluator)
    return shares
