"""What `workers.strategy: auto` comes to."""

from triptych.errors import UserError
from triptych.models.sizes import Sizes, model_sizes
from triptych.plan.devices import on_devices
from triptych.plan.machines import Machine
from triptych.plan.sharding import may_shard
from triptych.recipe import Recipe
from triptych.recipe.training import StrategyName


def resolve_strategy(recipe: Recipe, name: str, machine: Machine, sizes: Sizes | None = None) -> StrategyName:
    """The strategy of a stage that the machine has room for: its own, or for `auto` the simplest that fits.

    One worker is `single`; more are `ddp`, or `fsdp` where a device would not hold the peak of ddp and holds that of
    fsdp. `sizes` None: those of the base; a base of unknown sizes is left to ddp.
    """
    workers = recipe.trained[name].workers
    if workers.strategy != "auto":
        return workers.strategy
    if workers.count == 1:
        return "single"
    try:
        sizes = sizes or model_sizes(recipe.model)
    except UserError:
        return "ddp"
    _, replicated = on_devices(recipe, name, sizes, machine, "ddp")
    if all(device.peak.expected <= device.capacity for device in replicated.values()):
        return "ddp"
    if not may_shard(recipe.trained[name]):
        return "ddp"
    _, sharded = on_devices(recipe, name, sizes, machine, "fsdp")
    return "fsdp" if all(device.peak.low <= device.capacity for device in sharded.values()) else "ddp"
