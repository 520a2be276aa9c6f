"""Feasibility of a space's points by the plan, before anything is launched."""

from collections.abc import Iterator
from typing import Any

from triptych.errors import UserError
from triptych.measure import traced
from triptych.measure.base_check import check_base
from triptych.plan import Machine, estimate, requests
from triptych.plan.placement import pack
from triptych.recipe import Recipe, RecipeError, Values, with_values
from triptych.tune.points import draw

DRAWN = 64
"""Points that stand for a whole space that is not a grid."""
_MOST = 64
"""Largest number of concurrent trials."""


def reason_infeasible(recipe: Recipe, values: Values, machine: Machine) -> str | None:
    """The reason why a point of the space cannot be launched on a machine; None if it can."""
    assert recipe.sweep is not None
    try:
        point = with_values(recipe, values)
        check_base(point, [recipe.sweep.stage])
        estimate(point, machine=machine, stage=recipe.sweep.stage, trace=traced, advise=False)
    except RecipeError as error:
        return "; ".join(problem.message for problem in error.problems)
    except UserError as error:
        return str(error)
    return None


def feasible_points(recipe: Recipe, machine: Machine) -> list[dict[str, Any]]:
    """Points of the recipe's space that can be launched: of all of a grid, else of DRAWN random ones.

    Raises:
        UserError: none can be launched; the message shows the nearest recipe that could.
    """
    assert recipe.sweep is not None
    points = draw(recipe.sweep, recipe.seed, DRAWN)
    reasons = [reason_infeasible(recipe, values, machine) for values in points]
    fitting = [values for values, reason in zip(points, reasons, strict=True) if reason is None]
    if not fitting:
        unlike = list(dict(zip(reasons, points, strict=True)).values())  # one of each need: to try them all takes long
        raise UserError(
            f"sweep.space: none of {len(points)} points can be launched: {reasons[0]}; "
            f"{_nearest(recipe, unlike, machine)}"
        )
    return fitting


def max_concurrent(recipe: Recipe, stage: str, machine: Machine) -> int:
    """Number of runs of a stage that the machine has room for at once, by CPUs, GPUs, and memory if they share it."""
    asked = requests(stage, recipe.trained[stage])
    count = 1
    while count < _MOST and pack(asked * (count + 1), machine) is not None:
        count += 1
    if any(request.gpus >= 1 for request in asked):
        return count
    device = max(
        estimate(recipe, machine=machine, stage=stage, trace=traced).stages[stage].devices.values(),
        key=lambda device: device.peak.expected / device.capacity,
    )
    places = sum(node.gpus for node in machine.nodes) if asked[0].gpus else len(machine.nodes)
    return max(1, min(count, places * (device.capacity // max(device.peak.expected, 1))))


def _nearest(recipe: Recipe, points: list[dict[str, Any]], machine: Machine) -> str:
    """The first change, of those that cost the least, with which some point fits."""
    for change in _changes(recipe):
        for values in points:
            if reason_infeasible(recipe, {**values, **change}, machine) is None:
                shown = ", ".join(f"{key}={value}" for key, value in {**change, **values}.items())
                return f"the nearest that fits: {shown}"
    return "nor does any with a smaller micro-batch and full checkpointing fit"


def _changes(recipe: Recipe) -> Iterator[dict[str, Any]]:
    """Changes of settings that need less memory, the mildest first."""
    assert recipe.sweep is not None
    name = recipe.sweep.stage
    stage, part = recipe.trained[name], f"stages.{name}.train"
    field, longest = f"{part}.batch.micro_tokens", stage.shape().longest
    for checkpointing in ({}, {f"{part}.memory.checkpointing": "full"}):
        tokens = stage.train.batch.micro_tokens
        tokens = tokens if checkpointing else tokens // 2
        while tokens >= longest:
            yield {field: tokens, **checkpointing}
            tokens //= 2
    length = longest // 2
    while length >= 16:
        limit = {f"stages.{name}.{stage.shape().context_field}": length}
        yield {**limit, field: length, f"{part}.memory.checkpointing": "full"}
        length //= 2
