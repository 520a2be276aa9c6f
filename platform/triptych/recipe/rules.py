"""Rules across the model, the stages and their workers: what cannot be combined."""

from collections.abc import Iterator

from triptych.recipe.errors import Fault
from triptych.recipe.recipe import Recipe
from triptych.recipe.refusals import beside_head, by_optimizer, on_quantized, under_strategy
from triptych.recipe.stage import StageBase, TrainedStage
from triptych.recipe.training import Training

RUNS_UNDER_ZERO = ("adamw", "sgd", "lion")
"""DeepSpeed lays a group's parameters end to end: only element-wise rules survive that. Schedule-free AdamW is one, but
its average would have to be taken in DeepSpeed's own copy of the weights."""


def rule_faults(recipe: Recipe) -> list[Fault]:
    """All that the recipe's stages cannot do with its model and their workers; its references must be right."""
    found = [
        Fault(("stages", name, *fault.path), fault.message)
        for name, stage in recipe.trained.items()
        for rule in (_zero, _method, _stopping)
        for fault in rule(recipe, stage)
    ]
    for name, stage in recipe.stages.items():
        own = [*_quantization(recipe, stage), *stage.faults(recipe.stages), *_refused(recipe, stage)]
        found += [Fault(("stages", name, *fault.path), fault.message) for fault in own]
    return found + [fault for name, stage in recipe.trained.items() for fault in _elastic(recipe, name, stage)]


def _refused(recipe: Recipe, stage: StageBase) -> Iterator[Fault]:
    """Adapters of other stages that a stage cannot use, as far as they are known beforehand."""
    for reference in stage.references():
        parent = recipe.stages.get(reference.ref)
        known = None if parent is None else parent.leaves(reference.ref, recipe.stages)
        if known is not None and (fault := stage.refusal(reference.field, known)):
            yield fault


def _zero(recipe: Recipe, stage: TrainedStage) -> Iterator[Fault]:
    strategy, roles = stage.workers.strategy, stage.trained_roles(recipe.stages)
    if not strategy.startswith("zero"):
        return
    for role in roles:
        if role.optimizer is not None and role.optimizer.name not in RUNS_UNDER_ZERO:
            yield Fault(
                (*role.optimizer_field, "name"),
                f"{role.optimizer.name} cannot run under strategy {strategy}, which flattens parameters; allowed: "
                f"{', '.join(RUNS_UNDER_ZERO)}, or workers.strategy auto, single, ddp or fsdp",
            )
    field = ("train", "workers", "strategy")
    if recipe.model.dtype == "float16":
        yield Fault(
            field,
            f"{strategy} has no loss scaling, which model.dtype float16 needs; "
            "allowed: auto, single, ddp, fsdp, or model.dtype bfloat16 or float32",
        )
    if strategy == "zero3" and len(roles) > 1:
        names = ", ".join(role.name for role in roles)
        yield Fault(
            field, f"zero3 trains one role, and this stage has {names}; allowed: auto, single, ddp, fsdp, zero1, zero2"
        )
    if strategy == "zero3" and recipe.model.quantization:
        yield Fault(
            field,
            f"zero3 holds the base in float32, not in model.quantization {recipe.model.quantization}; "
            "allowed: auto, single, ddp, zero1, zero2",
        )


def _quantization(recipe: Recipe, stage: StageBase) -> Iterator[Fault]:
    if recipe.model.quantization == "nf4" and stage.workers is not None and stage.workers.gpus == 0:
        yield Fault(
            (*stage.workers_field.split("."), "gpus"),
            "0, and model.quantization nf4 needs a GPU; allowed: more than 0, or quantization int8",
        )
    if recipe.model.quantization == "nf4" and stage.engines is not None:
        yield Fault(
            ("rollout",),
            "engines sample the base unrounded where model.quantization is nf4, and so another model than is trained; "
            "allowed: quantization int8, or none",
        )


def _method(recipe: Recipe, stage: TrainedStage) -> Iterator[Fault]:
    """Combinations that the stage's own method does not allow."""
    method, quantization = stage.own_method, recipe.model.quantization
    if method is None:
        return
    whole = stage.whole_with_head or stage.output == "model"
    makes_head = not whole and any(role.head for role in stage.roles(recipe.stages))
    reasons = [
        beside_head(method, stage.kind) if makes_head else None,
        under_strategy(method, stage.workers.strategy),
        by_optimizer(method, stage.train.optimizer.name),
        on_quantized(method, quantization) if quantization else None,
    ]
    for reason in reasons:
        if reason:
            yield Fault(("method",), f"{reason}; allowed: another method, such as lora")


def _stopping(recipe: Recipe, stage: TrainedStage) -> Iterator[Fault]:
    """Early stopping by what is never measured."""
    stopping = stage.train.early_stopping if isinstance(stage.train, Training) else None
    if stopping is None:
        return
    if stage.data.heldout is None:
        yield Fault(
            ("train", "early_stopping"),
            "no held-out rows to measure; allowed: with `data.heldout`, or no early_stopping",
        )
    known = stage.reports()
    if known and stopping.metric not in known:
        yield Fault(
            ("train", "early_stopping", "metric"),
            f"{stopping.metric!r} is not measured on the held-out rows of this stage; allowed: {', '.join(known)}",
        )


def _elastic(recipe: Recipe, name: str, stage: TrainedStage) -> Iterator[Fault]:
    field = ("stages", name, "train", "workers", "min_count")
    if stage.workers.min_count is None:
        return
    if stage.engines is not None:
        yield Fault(
            field,
            "an elastic group needs the cluster for itself, and the stage's engines run beside it; "
            "allowed: no min_count",
        )
    before = _ancestors(recipe, name)
    for other in recipe.stages:
        if other != name and other not in before and name not in _ancestors(recipe, other):
            yield Fault(
                field,
                f"an elastic group needs the cluster for itself, and stage `{other}` may run beside `{name}`; "
                f"allowed: no min_count, or one of the two among the `needs` of the other",
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
