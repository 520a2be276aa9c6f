"""Which points are asked for: conditions hold, every kind of search, the same after going on."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from triptych.observe.sweeps import TrialView, trial_name
from triptych.recipe import Recipe
from triptych.tune.importance import importance
from triptych.tune.points import Points, draw, grid

LR, NAME, RANK, TOKENS = (
    "stages.sft.train.optimizer.lr",
    "stages.sft.method.name",
    "stages.sft.method.r",
    "stages.sft.method.num_virtual_tokens",
)
SPACE = {
    LR: {"loguniform": [1e-4, 1e-2]},
    NAME: {"choice": ["lora", "p_tuning_v2"]},
    RANK: {"choice": [2, 4], "when": {NAME: "lora"}},
    TOKENS: {"logint": [2, 32], "when": {NAME: "p_tuning_v2"}},
}
Make = Callable[..., Recipe]


def ended(number: int, values: dict[str, Any], loss: float, status: str = "done", **more: float) -> TrialView:
    run = trial_name(number)
    report = {"step": 6, "run": run, "metrics": {"heldout_loss": loss, **more}}
    return TrialView(number, values, run, status, reports=[report | {"step": 2}, report])


def cost(values: dict[str, Any]) -> float:
    return abs(math.log10(values[LR] / 1e-3)) + 0.1 * float(values.get(RANK, 8))


@pytest.mark.parametrize("search", ["random", "tpe"])
def test_going_on_asks_what_would_have_been_asked(make_recipe: Make, search: str) -> None:
    sweep = make_recipe(space=SPACE, search=search, budget={"trials": 12}).sweep
    assert sweep is not None
    points, asked, over = Points(sweep, 7), [], []
    for number in range(1, 13):
        values = points.ask(number)
        assert values is not None
        asked.append(values)
        over.append(ended(number, values, cost(values), "stopped" if number % 3 == 0 else "done"))
        points.tell(over[-1])
    for values in asked:
        assert (RANK in values) == (values[NAME] == "lora") != (TOKENS in values)
        assert 1e-4 <= values[LR] <= 1e-2
    again = Points(sweep, 7)
    for trial in over[:5]:
        again.tell(trial)
    again.begun(6, asked[5])
    again.tell(over[5])
    for number in range(7, 13):
        assert again.ask(number) == asked[number - 1]
        again.tell(over[number - 1])
    assert Points(sweep, 8).ask(1) != asked[0]


def test_tpe_learns(make_recipe: Make) -> None:
    sweep = make_recipe(space=SPACE, search="tpe", budget={"trials": 40}).sweep
    assert sweep is not None
    points, costs = Points(sweep, 0), []
    for number in range(1, 41):
        values = points.ask(number)
        assert values is not None
        costs.append(cost(values))
        points.tell(ended(number, values, costs[-1]))
    assert sum(costs[-15:]) < 0.75 * sum(costs[:15]), costs


def test_a_grid_leaves_out_what_does_not_apply(make_recipe: Make) -> None:
    space = {NAME: SPACE[NAME], RANK: SPACE[RANK], TOKENS: {"choice": [4, 8, 16], "when": {NAME: "p_tuning_v2"}}}
    sweep = make_recipe(space=space, search="grid").sweep
    assert sweep is not None
    found = grid(sweep)
    assert len(found) == 2 + 3
    assert draw(sweep, 0, 2) == found
    points = Points(sweep, 0)
    assert [points.ask(number) for number in range(1, 7)] == [*found, None]


@pytest.mark.parametrize("search", ["tpe", "nsga2"])
def test_several_objectives(make_recipe: Make, search: str) -> None:
    both = [{"metric": "heldout_loss", "mode": "min"}, {"metric": "tokens_per_second", "mode": "max"}]
    sweep = make_recipe(space=SPACE, search=search, objective=both, budget={"trials": 20}).sweep
    assert sweep is not None
    points = Points(sweep, 0)
    for number in range(1, 21):
        values = points.ask(number)
        assert values is not None
        status = "failed" if number == 4 else "done"
        points.tell(ended(number, values, cost(values), status, tokens_per_second=1 / values[LR]))
    assert len(points.study.best_trials) >= 2


def test_what_cannot_be_told_is_no_result(make_recipe: Make) -> None:
    sweep = make_recipe(search="tpe").sweep
    assert sweep is not None
    points = Points(sweep, 0)
    values = points.ask(1)
    assert values is not None
    points.tell(ended(1, values, float("nan")))
    values = points.ask(2)
    assert values is not None
    points.tell(TrialView(2, values, "trial-002", "failed"))
    points.tell(replace(ended(3, values, 1.0), status="infeasible", reports=[]))
    assert [trial.state.name for trial in points.study.trials] == ["FAIL"] * 3


def test_importance_finds_what_matters(make_recipe: Make, sweep_of: Callable[..., Any]) -> None:
    recipe = make_recipe(budget={"trials": 40})
    sweep = recipe.sweep
    assert sweep is not None
    drawn = draw(sweep, 0, 40)
    view = sweep_of(recipe, [(values, [abs(values[LR] - 3e-3)], "done") for values in drawn])
    shares = importance(view)
    assert set(shares) == {LR, RANK}
    assert shares[LR] > 2 * shares[RANK]
    assert importance(sweep_of(recipe, [(drawn[0], [1.0], "done")])) == {}
