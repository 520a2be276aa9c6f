"""What cannot go together, across the model, the stages and their workers."""

from collections.abc import Iterator
from dataclasses import dataclass

from triptych.recipe.method import Method, names_of, parts_of
from triptych.recipe.recipe import Recipe
from triptych.recipe.spec import Path
from triptych.recipe.stages import PpoStage, Reward, Sft, Stage, workers_of, workers_path
from triptych.recipe.training import Optimizer, Workers

RUNS_UNDER_ZERO = ("adamw", "sgd", "lion")
"""DeepSpeed lays a group's parameters end to end: only element-wise rules survive that. Schedule-free AdamW is one, but
its average would have to be taken in DeepSpeed's own copy of the weights."""


@dataclass(frozen=True)
class Fault:
    """Something wrong that no field shows by itself."""

    path: Path
    message: str


def rule_faults(recipe: Recipe) -> list[Fault]:
    """All that the recipe's stages cannot do with its model and their workers; its references must be right."""
    return [
        fault
        for name, stage in recipe.stages.items()
        for rule in (_zero, _quantization, _full, _elastic, _ratios)
        for fault in rule(recipe, name, stage)
    ]


def _zero(recipe: Recipe, name: str, stage: Stage) -> Iterator[Fault]:
    path, workers = _workers(name, stage)
    strategy = workers.strategy
    if not strategy.startswith("zero"):
        return
    for field, optimizer in _optimizers(name, stage):
        if optimizer.name not in RUNS_UNDER_ZERO:
            yield Fault(
                (*field, "name"),
                f"{optimizer.name} cannot run under strategy {strategy}, which flattens parameters; allowed: "
                f"{', '.join(RUNS_UNDER_ZERO)}, or workers.strategy auto, single, ddp or fsdp",
            )
    if recipe.model.dtype == "float16":
        yield Fault(
            (*path, "strategy"),
            f"{strategy} has no loss scaling, which model.dtype float16 needs; "
            "allowed: auto, single, ddp, fsdp, or model.dtype bfloat16 or float32",
        )
    if strategy == "zero3" and (isinstance(stage, PpoStage) or (isinstance(stage, Reward) and stage.members > 1)):
        roles = "a policy and a value model" if isinstance(stage, PpoStage) else f"{stage.members} members"
        yield Fault(
            (*path, "strategy"),
            f"zero3 trains one role, and this stage has {roles}; allowed: auto, single, ddp, fsdp, zero1, zero2",
        )
    if strategy == "zero3" and recipe.model.quantization:
        yield Fault(
            (*path, "strategy"),
            f"zero3 holds the base in float32, not in model.quantization {recipe.model.quantization}; "
            "allowed: auto, single, ddp, zero1, zero2",
        )


def _quantization(recipe: Recipe, name: str, stage: Stage) -> Iterator[Fault]:
    path, workers = _workers(name, stage)
    if recipe.model.quantization == "nf4" and workers.gpus == 0:
        yield Fault(
            (*path, "gpus"), "0, and model.quantization nf4 needs a GPU; allowed: more than 0, or quantization int8"
        )
    if recipe.model.quantization and not isinstance(stage, PpoStage) and _whole(stage.method):
        yield Fault(
            ("stages", name, "method", "name"),
            f"{names_of(stage.method)} trains weights of the base, and model.quantization "
            f"{recipe.model.quantization} is for frozen ones; allowed: lora, or no quantization",
        )


def _full(recipe: Recipe, name: str, stage: Stage) -> Iterator[Fault]:
    if not isinstance(stage, Sft | PpoStage) and _whole(stage.method):
        yield Fault(
            ("stages", name, "method", "name"),
            f"{names_of(stage.method)} makes a whole model, and a {stage.kind} stage makes a head beside a frozen "
            "base; allowed: any other method",
        )
    if not isinstance(stage, PpoStage):
        return
    started = recipe.stages.get(stage.policy)
    if started is not None and not isinstance(started, PpoStage) and _whole(started.method):
        yield Fault(
            ("stages", name, "policy"),
            f"`{stage.policy}` trains by method {names_of(started.method)}, and PPO's roles are adapters on one frozen "
            "base; allowed: a stage with method lora",
        )


def _whole(method: Method) -> bool:
    return any(part.whole for part in parts_of(method))


def _elastic(recipe: Recipe, name: str, stage: Stage) -> Iterator[Fault]:
    path, workers = _workers(name, stage)
    if workers.min_count is None:
        return
    if isinstance(stage, PpoStage):
        yield Fault(
            (*path, "min_count"),
            "an elastic group needs the cluster for itself, and PPO's engines run beside it; allowed: no min_count",
        )
    before = _ancestors(recipe, name)
    for other in recipe.stages:
        if other != name and other not in before and name not in _ancestors(recipe, other):
            yield Fault(
                (*path, "min_count"),
                f"an elastic group needs the cluster for itself, and stage `{other}` may run beside `{name}`; "
                f"allowed: no min_count, or one of the two among the `needs` of the other",
            )


def _ratios(recipe: Recipe, name: str, stage: Stage) -> Iterator[Fault]:
    if not isinstance(stage, PpoStage):
        return
    for field, optimizer in _optimizers(name, stage):
        if optimizer.name == "adamw_schedule_free":
            yield Fault(
                (*field, "name"),
                "adamw_schedule_free samples at one point and takes gradients at another, and PPO's ratios compare the "
                "two; allowed: adamw, adamw_8bit, sgd, lion, muon",
            )


def _ancestors(recipe: Recipe, name: str) -> set[str]:
    """All stages that end before this one starts."""
    found: set[str] = set()
    left = [name]
    while left:
        parents = set(recipe.stages[left.pop()].parents()) - found
        found |= parents
        left += parents
    return found


def _workers(name: str, stage: Stage) -> tuple[Path, Workers]:
    return ("stages", name, *workers_path(stage)), workers_of(stage)


def _optimizers(name: str, stage: Stage) -> list[tuple[Path, Optimizer]]:
    if isinstance(stage, PpoStage):
        fields = {"policy_optimizer": stage.policy_optimizer, "value_optimizer": stage.value_optimizer}
        return [(("stages", name, field), optimizer) for field, optimizer in fields.items()]
    return [(("stages", name, "train", "optimizer"), stage.train.optimizer)]
