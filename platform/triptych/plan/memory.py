"""Memory of each role of a stage, by a closed form."""

from triptych.models.sizes import Sizes, Tensors
from triptych.plan.activations import BYTES
from triptych.plan.amounts import Bytes, Parts
from triptych.plan.machines import GIB, Gpu
from triptych.plan.sharding import StrategyName, fewest, sharding
from triptych.plan.worker import GPU_RUNTIME, MicroBatch, Worker
from triptych.recipe import Labelling, Lora, Method, PpoStage, Recipe, Reward, Rollout, Stage, workers_of
from triptych.recipe.method import trains_base

DEFAULT_METHOD = Lora()
"""Taken for an adapter version from the registry: a plan reads no registry."""

ENGINE_RUNTIME = (int(0.8 * GIB), int(1.4 * GIB), int(2.2 * GIB))
ENGINE_WEIGHTS = (1.0, 1.2, 2.0)
"""Factors: linear layers repacked for the CPU's matrix units are copies."""


def roles(recipe: Recipe, stage: Stage, sizes: Sizes, strategy: StrategyName, gpu: Gpu | None) -> dict[str, Parts]:
    """Memory of each role of a stage in one process; the base is shared, and counted with the first role.

    `gpu` is the kind of GPU that an engine gets a share of; None: engines run on CPU.
    """
    spread = sharding(workers_of(stage), strategy)
    on_cpu = workers_of(stage).gpus == 0
    if not isinstance(stage, PpoStage):
        learner = Worker(recipe.model, stage.train.memory, micro_batch(stage), sizes, spread, on_cpu)
        trained = learner.trained(
            stage.method, head_of(sizes, stage), stage.train.optimizer, logits=stage.kind == "sft"
        )
        found = dict.fromkeys(_role_names(stage), trained)
        first = next(iter(found))
        return found | {first: learner.base(stage.method) | trained}
    learner = Worker(recipe.model, stage.memory, micro_batch(stage), sizes, spread, on_cpu)
    policy, reward = method_of(recipe, stage.policy), method_of(recipe, stage.reward)
    scored = recipe.stages.get(stage.reward)
    members = scored.members if isinstance(scored, Reward) else 1
    return {
        "policy": learner.base(policy) | learner.trained(policy, [], stage.policy_optimizer, logits=True),
        "reference": learner.frozen(policy, []),
        "critic": learner.trained(reward, _scalar(sizes), stage.value_optimizer, logits=False),
        "reward": learner.frozen(reward, _scalar(sizes), members),
        "engine": _engine(sizes, recipe.model.dtype, stage.rollout, gpu),
    }


def method_of(recipe: Recipe, ref: str) -> Method:
    """The method of the stage or adapter version that PPO starts from."""
    stage = recipe.stages.get(ref)
    if stage is None or isinstance(stage, PpoStage) or trains_base(stage.method):
        return DEFAULT_METHOD
    return stage.method


def head_of(sizes: Sizes, stage: Stage) -> list[Tensors]:
    """The head that a stage trains beside its method's parameters."""
    if isinstance(stage, Labelling):
        return [Tensors((len(stage.labels), sizes.hidden), in_block=False)]
    return _scalar(sizes) if isinstance(stage, Reward) else []


def micro_batch(stage: Stage) -> MicroBatch:
    """What the recipe's limits allow."""
    if isinstance(stage, PpoStage):
        length = stage.max_prompt_tokens + stage.rollout.sampling.max_new_tokens
        rows = stage.prompts_per_step * stage.samples_per_prompt // stage.ppo.minibatches
        budget, least = stage.micro_tokens, 1
    else:
        batch = stage.train.batch
        least = 2 if stage.kind == "reward" else 1
        length, rows, budget = batch.max_length, batch.rows * least, batch.micro_tokens
    tokens = max(least * length, min(budget, -(-rows // fewest(workers_of(stage))) * length))
    return MicroBatch(tokens, length)


def _scalar(sizes: Sizes) -> list[Tensors]:
    return [Tensors((1, sizes.hidden), in_block=False), Tensors((1,), in_block=False)]


def _role_names(stage: Stage) -> list[str]:
    if isinstance(stage, Reward):
        return ["reward", *(f"reward-{number}" for number in range(1, stage.members))]
    return ["classifier" if isinstance(stage, Labelling) else "policy"]


def _engine(sizes: Sizes, dtype: str, rollout: Rollout, gpu: Gpu | None) -> Parts:
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
