"""Early stopping by itself: what is best, how patience counts, and that both survive a restart."""

import json
import math
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.recipe import EarlyStopping
from triptych.train.stopping import Stopper

NAN, INF = math.nan, math.inf


def judged(values: list[float], **settings: Any) -> tuple[Stopper, list[bool]]:
    """The stopper after these held-out values, step by step from 1, and which of them were the best so far."""
    stopper = Stopper(EarlyStopping(**settings))
    return stopper, [stopper.judge(step, {"heldout_loss": value}) for step, value in enumerate(values, 1)]


@pytest.mark.parametrize("nothing", [NAN, INF, -INF])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_value_that_is_no_number_is_never_the_best(nothing: float, mode: str) -> None:
    later = [1.0, 0.5] if mode == "min" else [0.5, 1.0]
    stopper, best = judged([nothing, *later, nothing], patience=3, mode=mode)
    assert best == [False, True, True, False]
    assert (stopper.best, stopper.best_step, stopper.waited, stopper.stops) == (later[1], 3, 1, False)


def test_patience_counts_evaluations_that_are_no_numbers() -> None:
    stopper = judged([NAN, NAN], patience=2)[0]
    assert stopper.stops
    assert (stopper.best, stopper.best_step) == (None, None)


def test_patience_counts_since_the_best_alone() -> None:
    stopper, best = judged([3.0, 4.0, 2.0, 2.5], patience=2)
    assert best == [True, False, True, False]
    assert (stopper.waited, stopper.stops) == (1, False)
    stopper.judge(5, {"heldout_loss": 2.0})  # as good is not better
    assert (stopper.best, stopper.best_step, stopper.waited, stopper.stops) == (2.0, 3, 2, True)


@pytest.mark.parametrize(("mode", "values"), [("min", [1.0, 0.95, 0.9, 0.85]), ("max", [1.0, 1.05, 1.1, 1.15])])
def test_a_gain_counts_from_the_best_and_must_exceed_min_delta(mode: str, values: list[float]) -> None:
    stopper, best = judged(values, patience=3, mode=mode, min_delta=0.12)
    assert best == [True, False, False, True]
    assert stopper.best == values[3]


def test_a_metric_that_is_not_measured_is_refused() -> None:
    stopper = Stopper(EarlyStopping(metric="accuracy"))
    with pytest.raises(UserError, match=r"early_stopping\.metric: no metric 'accuracy'; allowed here: loss"):
        stopper.judge(1, {"heldout_loss": 1.0})


def test_every_field_survives_a_restart() -> None:
    stopper, _ = judged([3.0, 2.0, 2.5], patience=2)
    again = Stopper(stopper.config)
    again.load_state(json.loads(json.dumps(stopper.state())))
    assert again == stopper
    assert (again.best, again.best_step, again.waited) == (2.0, 2, 1)


def test_a_best_that_earlier_versions_took_from_nan_is_forgotten() -> None:
    stopper = Stopper(EarlyStopping(patience=3))
    stopper.load_state(json.loads(json.dumps({"best": NAN, "best_step": 1, "waited": 1})))
    assert stopper.judge(3, {"heldout_loss": 1.0})
    assert stopper.best_step == 3
