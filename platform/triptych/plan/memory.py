"""Memory of each role of a stage, by a closed form."""

from collections.abc import Sequence

from triptych.models.families import packs_rows
from triptych.models.sizes import Sizes, Tensors, model_sizes
from triptych.plan.activations import BYTES
from triptych.plan.amounts import Bytes, Parts
from triptych.plan.machines import GIB, Gpu
from triptych.plan.placement import ENGINE, engine_of
from triptych.plan.sharding import sharding
from triptych.plan.worker import GPU_RUNTIME, Worker
from triptych.recipe import Engines, Recipe, RoleSpec, TrainedStage
from triptych.recipe.training import StrategyName
from triptych.recipe.work_shape import MicroBatch

ENGINE_RUNTIME = (int(0.8 * GIB), int(1.4 * GIB), int(2.2 * GIB))
ENGINE_WEIGHTS = (1.0, 1.2, 2.0)
"""Low, expected and high factor on an engine's weights: layers repacked for the CPU's matrix units are copies."""


def roles(
    recipe: Recipe,
    stage: TrainedStage,
    sizes: Sizes,
    strategy: StrategyName,
    gpu: Gpu | None,
    batch: MicroBatch | None = None,
) -> dict[str, Parts]:
    """Memory of each role of a stage in one process; a model is counted with the first role that stands on it.

    Args:
        recipe: the recipe.
        stage: one of its stages.
        sizes: of the base.
        strategy: what the stage's resolves to.
        gpu: the machine's kind of GPU, of which an engine with `gpus` gets a share; None: engines run on CPU.
        batch: the largest micro-batch of the stage's data; None: the largest that the recipe allows.
    """
    workers, engines = stage.workers, stage.engines
    learner = Worker(
        recipe.model.model_copy(update={"packing": packs_rows(recipe.model)}),
        stage.train.memory,
        batch or micro_batch(stage),
        sizes,
        sharding(workers, strategy),
        workers.gpus == 0,
    )
    specs = stage.roles(recipe.stages)
    found = {spec.name: _role(learner, spec, sizes) for spec in specs}
    first, *others = first_on_each_model(specs)
    found[first.name] = learner.base(first.method) | found[first.name]
    for spec in others:
        found[spec.name] = learner.weights(spec.method if spec.trained else None) | found[spec.name]
    if engines is not None:
        found[ENGINE] = engine_memory(sizes, recipe.model.dtype, engines, gpu if engines.gpus > 0 else None)
    for one in stage.engine_models:
        on = gpu if one.engines.gpus > 0 else None
        found[engine_of(one.name)] = engine_memory(model_sizes(one.model), one.model.dtype, one.engines, on)
    return found


def first_on_each_model(specs: Sequence[RoleSpec]) -> list[RoleSpec]:
    """Of the roles on each model the first one: the models of a stage, in the order in which they are loaded."""
    found: dict[str, RoleSpec] = {}
    for spec in specs:
        found.setdefault(spec.model, spec)
    return list(found.values())


def _role(learner: Worker, spec: RoleSpec, sizes: Sizes) -> Parts:
    head = head_of(sizes, spec)
    if spec.optimizer is None:
        return learner.frozen(spec.method, head, spec.copies)
    return learner.trained(spec.method, head, spec.optimizer, logits=spec.logits)


def head_of(sizes: Sizes, spec: RoleSpec) -> list[Tensors]:
    """Tensors of a role's head; none where it has none."""
    if spec.head is None:
        return []
    weight = Tensors((spec.head.outputs, sizes.hidden), in_block=False)
    return [weight, Tensors((spec.head.outputs,), in_block=False)] if spec.head.bias else [weight]


def micro_batch(stage: TrainedStage) -> MicroBatch:
    """The largest micro-batch that the recipe's limits allow."""
    shape, budget = stage.shape(), stage.train.batch.micro_tokens
    sequences = -(-shape.sequences_per_update // stage.workers.fewest)
    return MicroBatch(max(shape.row_tokens, min(budget, sequences * shape.longest)), shape.longest)


def engine_memory(sizes: Sizes, dtype: str, rollout: Engines, gpu: Gpu | None) -> Parts:
    """Memory of one engine; `gpu`: the kind that it gets a share of, None on a CPU."""
    weights = sizes.total * BYTES[dtype]
    if gpu is None:
        return {
            "weights": Bytes.scaled(weights, ENGINE_WEIGHTS),
            "kv_cache": Bytes.exactly(int(rollout.kv_cache_gb * GIB)),
            "runtime": Bytes(*ENGINE_RUNTIME),
        }
    # An engine on a GPU takes the whole of its share: what weights and workspace leave is cache.
    share = int(rollout.gpu_memory * gpu.memory)
    runtime = GPU_RUNTIME[1]
    return {
        "weights": Bytes.exactly(weights),
        "kv_cache": Bytes.exactly(max(0, share - weights - runtime)),
        "runtime": Bytes.exactly(runtime),
    }
