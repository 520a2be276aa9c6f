"""Memory of one process by a closed form.

What autograd keeps of a block was counted on the learner (frozen base, LoRA, sdpa attention, no checkpointing); the
intervals cover what the recipe does not say: how full micro-batches are, how long answers are, what an allocator keeps.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce

from triptych.models.sizes import Sizes
from triptych.plan.machines import GIB, Gpu
from triptych.recipe import Lora, PpoStage, Recipe, Rollout, Stage

BYTES = {"float32": 4, "bfloat16": 2}
FP32 = 4
DEFAULT_METHOD = Lora()
"""Taken for an adapter version from the registry: a plan reads no registry."""

ACTIVATIONS = (0.4, 1.0, 1.4)
"""Low, expected, high factors on a full micro-batch."""
ANSWER_SHARE = (0.1, 0.5, 1.0)
"""Low, expected, high share of a micro-batch's tokens that are learned, and so have logits."""
LOGIT_BYTES = 16
"""Bytes an element at the peak: model's dtype, float32, log-softmax and gradient."""
LEARNER_RUNTIME = (int(0.5 * GIB), int(0.9 * GIB), int(1.5 * GIB))
"""Interpreter, libraries and Ray on a CPU; the CUDA context and libraries on a GPU are of the same order."""
ENGINE_RUNTIME = (int(0.8 * GIB), int(1.4 * GIB), int(2.2 * GIB))
ENGINE_WEIGHTS = (1.0, 1.2, 2.0)
"""Factors: linear layers repacked for the CPU's matrix units are copies."""


@dataclass(frozen=True)
class Bytes:
    """An amount of memory with its interval."""

    low: int
    expected: int
    high: int

    @classmethod
    def exactly(cls, amount: int) -> "Bytes":
        return cls(amount, amount, amount)

    @classmethod
    def scaled(cls, amount: float, factors: tuple[float, float, float]) -> "Bytes":
        low, expected, high = (int(amount * factor) for factor in factors)
        return cls(low, expected, high)

    def __add__(self, other: "Bytes") -> "Bytes":
        return Bytes(self.low + other.low, self.expected + other.expected, self.high + other.high)

    def as_dict(self) -> dict[str, int]:
        return {"low": self.low, "expected": self.expected, "high": self.high}


ZERO = Bytes.exactly(0)


def total(amounts: Iterable[Bytes]) -> Bytes:
    """The sum."""
    return reduce(Bytes.__add__, amounts, ZERO)


Parts = Mapping[str, Bytes]
"""Memory of a role by part: weights, adapter, gradients, optimizer, activations, logits, kv_cache, runtime."""

TRANSIENT = ("activations", "logits")
"""Parts that exist while a role is at work; roles of one process take turns."""


def roles(recipe: Recipe, stage: Stage, sizes: Sizes, gpu: Gpu | None) -> dict[str, Parts]:
    """Memory of each role of a stage in one process; the base is shared, and counted with the role that is updated.

    `gpu` is the kind of GPU that an engine gets a share of; None: engines run on CPU.
    """
    base = {"weights": Bytes.exactly(sizes.total * BYTES[recipe.model.dtype]), "runtime": Bytes(*LEARNER_RUNTIME)}
    dtype = recipe.model.dtype
    if not isinstance(stage, PpoStage):
        batch = micro_batch(stage)
        scores = stage.kind == "reward"
        updated = _trainable(sizes, stage.method, scores) | _transient(sizes, stage.method, dtype, batch, scores)
        return {"reward" if scores else "policy": base | updated}
    batch = micro_batch(stage)
    policy, reward = method_of(recipe, stage.policy), method_of(recipe, stage.reward)
    return {
        "policy": base | _trainable(sizes, policy, False) | _transient(sizes, policy, dtype, batch, False),
        "reference": {"adapter": _adapter(sizes, policy, False)},
        "critic": _trainable(sizes, reward, True) | _transient(sizes, reward, dtype, batch, True),
        "reward": {"adapter": _adapter(sizes, reward, True)},
        "engine": _engine(sizes, dtype, stage.rollout, gpu),
    }


def method_of(recipe: Recipe, ref: str) -> Lora:
    """The method of the stage or adapter version that a stage starts from."""
    stage = recipe.stages.get(ref)
    return DEFAULT_METHOD if stage is None or isinstance(stage, PpoStage) else stage.method


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch of one worker."""

    tokens: int
    """Padding included."""
    length: int
    """Tokens of its longest row."""


def micro_batch(stage: Stage) -> MicroBatch:
    """What the recipe's limits allow."""
    if isinstance(stage, PpoStage):
        length = stage.max_prompt_tokens + stage.rollout.sampling.max_new_tokens
        rows = stage.prompts_per_step * stage.samples_per_prompt // stage.ppo.minibatches
        budget, workers, least = stage.micro_tokens, stage.workers.count, 1
    else:
        batch, workers = stage.train.batch, stage.train.workers.count
        least = 2 if stage.kind == "reward" else 1
        length, rows, budget = batch.max_length, batch.rows * least, batch.micro_tokens
    tokens = max(least * length, min(budget, -(-rows // workers) * length))
    return MicroBatch(tokens, length)


def block_bytes(sizes: Sizes, method: Lora, dtype: str, length: int) -> int:
    """Bytes that autograd keeps of one block for one token of a row of `length` tokens.

    Inputs of both norms (float32); queries, expanded keys and values, output, mask and log-sum-exp of
    attention; gate, its activation and the up projection; the input of every adapted layer (shared where layers share
    it) and A's output.
    """
    size = BYTES[dtype]
    queries = sizes.heads * sizes.head_dim
    adapted = sizes.targets(method)
    groups = (
        (("q_proj", "k_proj", "v_proj"), sizes.hidden),
        (("gate_proj", "up_proj"), sizes.hidden),
        (("down_proj",), sizes.intermediate),
    )
    norms = FP32 * (2 * sizes.hidden + sizes.qk_norm * sizes.head_dim * (sizes.heads + sizes.kv_heads))
    attention = size * (4 * queries + length) + FP32 * sizes.heads
    mlp = size * 3 * sizes.intermediate
    inputs = size * sum(width for names, width in groups if any(name.endswith(names) for name in adapted))
    return norms + attention + mlp + inputs + size * method.r * len(adapted)


def _transient(sizes: Sizes, method: Lora, dtype: str, batch: MicroBatch, scores: bool) -> dict[str, Bytes]:
    # One more block stands for the final norm and for what a block's backward pass works with.
    kept = (sizes.layers + 1) * block_bytes(sizes, method, dtype, batch.length) * batch.tokens
    parts = {"activations": Bytes.scaled(kept, ACTIVATIONS)}
    if not scores:
        parts["logits"] = Bytes.scaled(sizes.vocab * batch.tokens * LOGIT_BYTES, ANSWER_SHARE)
    return parts


def trainable_parameters(sizes: Sizes, method: Lora, scores: bool) -> int:
    """Parameters of an adapter, with the scalar head of a role that scores."""
    return sizes.lora(method) + (sizes.hidden + 1 if scores else 0)


def _adapter(sizes: Sizes, method: Lora, scores: bool) -> Bytes:
    return Bytes.exactly(trainable_parameters(sizes, method, scores) * FP32)


def _trainable(sizes: Sizes, method: Lora, scores: bool) -> dict[str, Bytes]:
    """Float32 parameters, their gradients, and Adam's two moments."""
    adapter = _adapter(sizes, method, scores)
    return {"adapter": adapter, "gradients": adapter, "optimizer": adapter + adapter}


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
    runtime = LEARNER_RUNTIME[1]
    return {
        "weights": Bytes.exactly(weights),
        "kv_cache": Bytes.exactly(max(0, share - weights - runtime)),
        "runtime": Bytes.exactly(runtime),
    }
