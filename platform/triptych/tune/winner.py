"""What becomes of a sweep's best trial: its values in full, registered with the sweep as lineage."""

from typing import Any

from triptych.errors import UserError
from triptych.observe.progress import Progress
from triptych.observe.sweeps import SweepView
from triptych.recipe import Recipe, with_values
from triptych.stages.run import run_recipe


def train_best(found: SweepView, progress: Progress) -> dict[str, Any]:
    """Run the recipe's own stage with the best trial's values, in the recipe's own run; the stage's summary.

    UserError: there is no best trial, or there are several objectives.
    """
    best, sweep = found.best, found.sweep
    if best is None or len(sweep.objectives) > 1:
        raise UserError(f"{found.name} has no one best trial to train: it has none that ended, or several objectives")
    recipe = winning_recipe(found.recipe, best.values)
    objective = sweep.objectives[0].metric
    origin = {
        "sweep": {"url": found.url, "trial": best.name, "values": best.values, objective: best.metrics[objective]}
    }
    return run_recipe(recipe, progress, sweep.stage, origin)[sweep.stage]


def winning_recipe(recipe: Recipe, values: dict[str, Any]) -> Recipe:
    """The recipe with a point's values, under the name that its winner is registered by."""
    assert recipe.sweep is not None
    won = with_values(recipe, values)
    name = recipe.sweep.winner.register_as
    if name is None:
        return won
    stage = won.stages[recipe.sweep.stage].model_copy(update={"register_as": name})
    return won.model_copy(update={"stages": {**won.stages, recipe.sweep.stage: stage}})
