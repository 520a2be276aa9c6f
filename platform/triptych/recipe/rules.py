"""What cannot go together, across the model, the stages and their workers."""

from collections.abc import Iterator
from dataclasses import dataclass

from triptych.recipe.method import names_of
from triptych.recipe.recipe import Recipe
from triptych.recipe.refusals import as_policy, by_optimizer, in_stage, is_lora, on_quantized, under_strategy
from triptych.recipe.spec import Path
from triptych.recipe.stages import PpoStage, Reward, Stage, workers_of, workers_path
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
        for rule in (_zero, _quantization, _method, _elastic, _ratios)
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


def _method(recipe: Recipe, name: str, stage: Stage) -> Iterator[Fault]:
    """What its method cannot be combined with; PPO's is that of the stage that its policy comes from."""
    if isinstance(stage, PpoStage):
        started = recipe.stages.get(stage.policy)
        if started is None or isinstance(started, PpoStage):
            return
        if reason := as_policy(started.method):
            yield Fault(("stages", name, "policy"), f"`{stage.policy}`: {reason}")
        elif stage.rollout.sync == "adapter" and not is_lora(started.method):
            yield Fault(
                ("stages", name, "rollout", "sync"),
                f"adapter, and engines run no {names_of(started.method)} beside the weights; allowed: auto, merged",
            )
        return
    method, quantization = stage.method, recipe.model.quantization
    reasons = [
        in_stage(method, stage.kind),
        under_strategy(method, stage.train.workers.strategy),
        by_optimizer(method, stage.train.optimizer.name),
        on_quantized(method, quantization) if quantization else None,
    ]
    for reason in reasons:
        if reason:
            yield Fault(("stages", name, "method"), f"{reason}; allowed: another method, such as lora")


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
