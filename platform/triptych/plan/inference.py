"""Memory and speed of a stage that trains nothing: passes without gradients, and engines that answer."""

from triptych.errors import UserError
from triptych.methods.parameters.virtual import positions
from triptych.models.families import packs_rows
from triptych.models.sizes import Sizes
from triptych.plan.activations import RolePass
from triptych.plan.amounts import Bytes, Parts, total
from triptych.plan.devices import DeviceEstimate, RoleEstimate, by_device
from triptych.plan.engine_speed import sampling_rate
from triptych.plan.machines import Gpu, Machine
from triptych.plan.memory import engine_memory, head_of
from triptych.plan.placement import pack, requests
from triptych.plan.rates import CPU, Rates
from triptych.plan.sharding import sharding
from triptych.plan.speed import FILL, Speed, compute_rates
from triptych.plan.worker import Worker
from triptych.plan.workload import Computation, Micro, Workload
from triptych.recipe import Memory, Recipe, StageBase, Workers
from triptych.recipe.stage import DEFAULT_METHOD
from triptych.recipe.training import StrategyName
from triptych.recipe.work_shape import ACTIVATIONS, MeasuringShape, MicroBatch

BASE = "base"
"""Name of the base among the roles of an estimate."""


def strategy_of(workers: Workers) -> StrategyName:
    """The strategy that `auto` resolves to: a copy of the model on each worker."""
    if workers.strategy != "auto":
        return workers.strategy
    return "single" if workers.count == 1 else "ddp"


def inference_memory(
    recipe: Recipe, name: str, workers: Workers, shape: MeasuringShape, sizes: Sizes, machine: Machine
) -> tuple[dict[str, RoleEstimate], dict[str, DeviceEstimate]]:
    """Memory of the base and each frozen role in one process, and of each device."""
    stage = recipe.stages[name]
    batch = MicroBatch(max(shape.longest, shape.micro_tokens), shape.longest)
    spread, on_cpu = sharding(workers, strategy_of(workers)), workers.gpus == 0 or machine.gpu is None
    worker = Worker(recipe.model, Memory(), batch, sizes, spread, on_cpu)
    roles: dict[str, Parts] = {BASE: worker.base(DEFAULT_METHOD) | _transient(recipe, sizes, batch)}
    for spec in stage.roles(recipe.stages):
        roles[_free(spec.name, roles)] = worker.frozen(spec.method, head_of(sizes, spec), spec.copies)
    learner = total(size for parts in roles.values() for size in parts.values())
    if stage.engines is not None:
        gpu: Gpu | None = machine.gpu if stage.engines.gpus > 0 else None
        roles["engine"] = engine_memory(sizes, recipe.model.dtype, stage.engines, gpu)
    processes = {"worker": learner, "engine": total(roles.get("engine", {}).values())}
    places = pack(requests(name, stage), machine)
    assert places is not None
    devices = by_device(places, processes, Bytes.exactly(0), machine, recipe)
    return {role: RoleEstimate(parts) for role, parts in roles.items()}, devices


def _free(name: str, taken: dict[str, Parts]) -> str:
    """The name, or with a number where it is taken: classifiers are all called alike."""
    return next(one for one in (name, *(f"{name}-{i}" for i in range(1, len(taken) + 1))) if one not in taken)


def _transient(recipe: Recipe, sizes: Sizes, batch: MicroBatch) -> Parts:
    """What a pass without gradients holds: one block's tensors, and a chunk of logits."""
    settings = Memory()
    work = RolePass(sizes, DEFAULT_METHOD, recipe.model.dtype, packs_rows(recipe.model), settings, batch.length)
    return {
        "activations": Bytes.scaled(work.forward() * batch.tokens, ACTIVATIONS),
        "logits": Bytes.scaled(work.logits(settings.loss_chunk or batch.tokens), (0.5, 1.0, 1.0)),
    }


def inference_speed(
    recipe: Recipe,
    name: str,
    workers: Workers,
    shape: MeasuringShape,
    sizes: Sizes,
    machine: Machine,
    rates: Rates | None,
) -> Speed:
    """Time of a micro-batch of every worker, and of the answers to as many prompts where engines write them."""
    stage, hardware = recipe.stages[name], compute_rates(recipe, workers, machine, rates or CPU)
    length = FILL * shape.longest
    tokens = shape.rows_at_once / workers.count * length
    micro = Micro(1, tokens, length, FILL * tokens)
    computed: Workload = Computation(sizes, DEFAULT_METHOD, recipe.model.dtype, Memory()).forward(micro)
    seconds, sampled = hardware.seconds(computed), shape.sampling
    if stage.engines is None or sampled is None:
        return Speed(workers.count * tokens, seconds)
    asked = next(request for request in requests(name, stage) if request.role == "engine")
    rate = sampling_rate(sampled, stage.engines, asked, sizes, machine, hardware.rates, recipe.model.dtype)
    answering = shape.answered * sampled.samples * sampled.max_new_tokens / rate
    return Speed(workers.count * tokens, seconds, sampling=answering)


def refuse_longer(recipe: Recipe, name: str, shape: MeasuringShape, sizes: Sizes) -> None:
    """UserError where a row, or a prompt and its answer, is longer than the base takes."""
    stage: StageBase = recipe.stages[name]
    taken = max((positions(role.method) for role in stage.roles(recipe.stages)), default=0)
    if sizes.max_length is not None and shape.longest + taken > sizes.max_length:
        raise UserError(
            f"stages.{name}.{shape.longest_field}: {shape.longest} tokens; "
            f"allowed: up to {sizes.max_length - taken} with this base"
        )
