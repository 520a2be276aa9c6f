"""What is refused or left out before anything is launched."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.plan import Machine, Node
from triptych.recipe import Recipe
from triptych.tune.budget import Budget
from triptych.tune.feasible import feasible_points, max_concurrent, reason_infeasible
from triptych.tune.population import perturb, resample
from triptych.tune.record import Record
from triptych.tune.search import Search
from triptych.tune.sweep import check_sweep, reported_metrics, sweep_folder

Make = Callable[..., Recipe]
TOKENS = "stages.sft.train.batch.micro_tokens"
MIB = 2**20


def machine(memory: int, cpus: int = 4) -> Machine:
    return Machine("tiny", (Node(cpus, 0, memory),), None)


def with_rows(recipe: Recipe, **batch: int) -> Recipe:
    """So many rows a step that a micro-batch can be as large as it may."""
    stage: Any = recipe.stages["sft"]
    larger = stage.train.batch.model_copy(update={"rows": 100_000, **batch})
    train = stage.train.model_copy(update={"batch": larger})
    return recipe.model_copy(update={"stages": {"sft": stage.model_copy(update={"train": train})}})


def test_points_without_room_are_counted_and_never_given_out(make_recipe: Make) -> None:
    recipe = with_rows(make_recipe(space={TOKENS: {"choice": [256, 4_000_000]}}, budget={"trials": 5}))
    small = machine(2_000 * MIB)
    assert reason_infeasible(recipe, {TOKENS: 256}, small) is None
    assert "does not fit machine" in str(reason_infeasible(recipe, {TOKENS: 4_000_000}, small))
    assert {values[TOKENS] for values in feasible_points(recipe, small)} == {256}
    record = Record(recipe, sweep_folder(recipe))
    search = Search(recipe, record, Budget(recipe, record), small)
    given = list(iter(search.next, None))
    assert [trial.values[TOKENS] for trial in given] == [256] * 5
    left_out = [trial for trial in record.trials.values() if trial.status == "infeasible"]
    assert left_out
    assert record.launched == 5
    assert all("does not fit" in trial.reason for trial in left_out)


@pytest.mark.slow
def test_a_space_without_room_shows_the_nearest_that_has(make_recipe: Make) -> None:
    large = with_rows(make_recipe(space={"stages.sft.method.r": {"choice": [2, 4]}}), micro_tokens=4_000_000)
    with pytest.raises(UserError, match=r"none of 2 points can be launched: .* the nearest that fits: .*micro_tokens="):
        feasible_points(large, machine(2_000 * MIB))
    with pytest.raises(UserError, match="nor does any with a smaller micro-batch"):
        feasible_points(large, machine(10 * MIB))


def test_as_many_side_by_side_as_have_room(make_recipe: Make) -> None:
    recipe = make_recipe()
    assert max_concurrent(recipe, "sft", machine(64_000 * MIB)) == 4
    assert max_concurrent(recipe, "sft", machine(64_000 * MIB, cpus=2)) == 2
    assert max_concurrent(recipe, "sft", machine(1_600 * MIB)) < 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"objective": {"metric": "heldout_acuracy", "mode": "max"}},
            "reports no 'heldout_acuracy'; allowed: heldout_loss, ",
        ),
        (
            {"scheduler": "pbt"},
            "goes on from another's weights, which stages.sft.method.r may shape; allowed: keys below",
        ),
    ],
)
def test_sweeps_that_the_stage_cannot_do(make_recipe: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_sweep(make_recipe(**change))


def test_a_scheduler_needs_evaluations(make_recipe: Make) -> None:
    """But for asha, which knows where it compares."""
    for scheduler in ("asha", "median", "pbt"):
        recipe = make_recipe(scheduler=scheduler)
        stage: Any = recipe.stages["sft"]
        train = stage.train.model_copy(update={"evaluate_every": None})
        without = recipe.model_copy(update={"stages": {"sft": stage.model_copy(update={"train": train})}})
        with (
            nullcontext() if scheduler == "asha" else pytest.raises(UserError, match=f"{scheduler} judges evaluations")
        ):
            check_sweep(without)
    data = stage.data.model_copy(update={"heldout": None})
    without = stage.model_copy(update={"data": data})
    assert "heldout_loss" not in reported_metrics(without)
    with pytest.raises(UserError, match=r"reports no 'heldout_loss'.*stages.sft.data.heldout would give more"):
        check_sweep(recipe.model_copy(update={"stages": {"sft": without}}))


def test_neighbours_stay_in_the_space(make_recipe: Make) -> None:
    import random

    space = {
        "stages.sft.train.optimizer.lr": {"loguniform": [1e-4, 1e-2]},
        "stages.sft.method.r": {"choice": [2, 4, 8]},
    }
    sweep = make_recipe(space=space).sweep
    assert sweep is not None
    rate, rank = sweep.space.values()
    chance = random.Random(0)
    near = {perturb(rate, 9e-3, chance, (0.8, 1.2)) for _ in range(50)}
    assert sorted(near) == pytest.approx([7.2e-3, 1e-2])
    assert {perturb(rank, 2, chance, (0.8, 1.2)) for _ in range(50)} == {2, 4}
    anew = [resample(rate, chance) for _ in range(200)]
    assert min(anew) >= 1e-4
    assert max(anew) <= 1e-2
    assert 70 < sum(value < 1e-3 for value in anew) < 130, "each decade as likely"
