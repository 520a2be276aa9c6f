"""Memory and speed of a stage that trains nothing: passes without gradients, and engines that answer."""

from triptych.errors import UserError
from triptych.methods.parameters.virtual import positions
from triptych.models.sizes import Sizes
from triptych.plan.activations import RolePass
from triptych.plan.amounts import Bytes, Parts, total
from triptych.plan.devices import DeviceEstimate, RoleEstimate, by_device
from triptych.plan.machines import Gpu, Machine
from triptych.plan.memory import engine_memory, head_of
from triptych.plan.placement import pack, requests
from triptych.plan.rates import CPU, Rates
from triptych.plan.sharding import sharding
from triptych.plan.speed import FILL, Speed, compute_rates, sampling_rate
from triptych.plan.worker import ACTIVATIONS, MicroBatch, Worker
from triptych.plan.workload import Computation, Micro, Workload
from triptych.recipe import Evaluation, Memory, Recipe, RoleSpec
from triptych.recipe.stage import DEFAULT_METHOD, SamplingShape
from triptych.recipe.training import StrategyName

BASE = "base"
"""Name of the base among the roles of an estimate."""


def strategy_of(stage: Evaluation) -> StrategyName:
    """The strategy that `auto` resolves to: a copy of the model on each worker."""
    if stage.workers.strategy != "auto":
        return stage.workers.strategy
    return "single" if stage.workers.count == 1 else "ddp"


def inference_memory(
    recipe: Recipe, name: str, stage: Evaluation, sizes: Sizes, machine: Machine
) -> tuple[dict[str, RoleEstimate], dict[str, DeviceEstimate]]:
    """Memory of the base and each frozen role in one process, and of each device."""
    on_cpu = stage.workers.gpus == 0 or machine.gpu is None
    batch = MicroBatch(max(stage.longest, stage.compute.batch.micro_tokens), stage.longest)
    worker = Worker(recipe.model, Memory(), batch, sizes, sharding(stage.workers, strategy_of(stage)), on_cpu)
    roles: dict[str, Parts] = {BASE: worker.base(DEFAULT_METHOD) | _transient(recipe, sizes, batch)}
    for spec in stage.roles(recipe.stages):
        roles[_free(spec.name, roles)] = worker.frozen(spec.method, head_of(sizes, spec), spec.copies)
    learner = total(size for parts in roles.values() for size in parts.values())
    gpu: Gpu | None = machine.gpu if stage.engines is not None and stage.engines.gpus > 0 else None
    if stage.engines is not None:
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
    work = RolePass(sizes, DEFAULT_METHOD, recipe.model.dtype, recipe.model.packing, settings, batch.length)
    return {
        "activations": Bytes.scaled(work.forward() * batch.tokens, ACTIVATIONS),
        "logits": Bytes.scaled(work.logits(settings.loss_chunk or batch.tokens), (0.5, 1.0, 1.0)),
    }


def inference_speed(
    recipe: Recipe, name: str, stage: Evaluation, sizes: Sizes, machine: Machine, rates: Rates | None
) -> Speed:
    """Time of a micro-batch of every worker, and of the answers to as many prompts where engines write them."""
    workers = compute_rates(recipe, stage.workers, machine, rates or CPU)
    length = FILL * stage.longest
    rows = stage.rows_at_once / stage.workers.count
    micro = Micro(1, rows * length, length, FILL * rows * length)
    computed: Workload = Computation(sizes, DEFAULT_METHOD, recipe.model.dtype, Memory()).forward(micro)
    tokens = stage.workers.count * micro.tokens
    if stage.engines is None:
        return Speed(tokens, workers.seconds(computed))
    share = sum(one.measure.generates for one in stage.sets.values()) / len(stage.sets)
    shape = _sampling(stage)
    asked = next(request for request in requests(name, stage) if request.role == "engine")
    rate = sampling_rate(shape, stage.engines, asked, sizes, machine, workers.rates, recipe.model.dtype)
    return Speed(tokens, workers.seconds(computed), sampling=share * shape.samples * shape.max_new_tokens / rate)


def _sampling(stage: Evaluation) -> SamplingShape:
    """Answers to as many prompts as a micro-batch has rows."""
    asked = stage.rollout
    return SamplingShape(
        stage.rows_at_once, asked.samples_per_prompt, asked.max_prompt_tokens, asked.sampling.max_new_tokens, 1, 1
    )


def refuse_longer(name: str, stage: Evaluation, roles: tuple[RoleSpec, ...], sizes: Sizes) -> None:
    """UserError where a row, or a prompt and its answer, is longer than the base takes."""
    taken = max((positions(role.method) for role in roles), default=0)
    if sizes.max_length is None or stage.longest + taken <= sizes.max_length:
        return
    read = stage.compute.batch.max_length == stage.longest
    field = "compute.batch.max_length" if read else "rollout.max_prompt_tokens + rollout.sampling.max_new_tokens"
    raise UserError(
        f"stages.{name}.{field}: {stage.longest} tokens; allowed: up to {sizes.max_length - taken} with this base"
    )
