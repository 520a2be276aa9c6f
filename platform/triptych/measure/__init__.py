"""The learner itself, measured without data: dry runs, traces of its memory, probes and the speed of a machine."""

from triptych.models.sizes import Sizes
from triptych.plan.amounts import Parts
from triptych.plan.sharding import Sharding
from triptych.recipe import Recipe
from triptych.recipe.work_shape import MicroBatch


def traced(
    recipe: Recipe,
    name: str,
    roles: dict[str, Parts],
    sizes: Sizes,
    spread: Sharding,
    batch: MicroBatch | None = None,
    *,
    on_gpu: bool,
) -> dict[str, Parts]:
    """The `Tracer` that runs the learner's step on fake tensors; it imports the learner when first called."""
    from triptych.measure import trace

    return trace.traced(recipe, name, roles, sizes, spread, batch, on_gpu=on_gpu)
