"""Seconds of a step, and so tokens a second: what is worked through, at the rates of the machine, and what is sent."""

import math
from dataclasses import dataclass
from typing import Any

from triptych.methods.added import trained
from triptych.models.sizes import Sizes
from triptych.plan.activations import BYTES, FP32
from triptych.plan.machines import Machine
from triptych.plan.memory import head_of, method_of
from triptych.plan.placement import Request, cores, requests
from triptych.plan.rates import CPU, Rates, of_gpu
from triptych.plan.sharding import StrategyName, sharding
from triptych.plan.work import Computation, Micro, Work
from triptych.plan.worker import ANSWER_SHARE
from triptych.recipe import Memory, Method, PpoStage, Recipe, Reward, Stage, Supervised, workers_of
from triptych.recipe.method import trains_base

FILL = 0.5
"""Length of rows as a share of the longest allowed."""
_DECODE_EFFICIENCY = 0.5
"""Share of a GPU's memory bandwidth that decoding sustains."""
_SEQUENCES = 256
"""Sequences that an engine decodes at once, at most."""
_CPU_LINK = 1.5e9
"""Bytes a second between workers on CPUs, by gloo."""
_NETWORK_LINK = 2.5e10
"""Bytes a second that a GPU has of the network between nodes: one of 200 Gbit/s."""


@dataclass(frozen=True)
class Speed:
    """A step of a stage, all of its workers together."""

    tokens: float
    """SFT and its like: tokens that are trained on. PPO: tokens of answers."""
    computing: float
    """Seconds of passes and updates."""
    communicating: float = 0.0
    sampling: float = 0.0

    @property
    def step_seconds(self) -> float:
        return self.computing + self.communicating + self.sampling

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        seconds = {"computing": self.computing, "communicating": self.communicating, "sampling": self.sampling}
        return {"tokens": self.tokens, "step_seconds": self.step_seconds, "seconds": seconds}


@dataclass(frozen=True)
class _Workers:
    """What a stage's workers compute on."""

    rates: Rates
    dtype: str
    threads: int
    crowding: float
    """How many threads share a core."""

    def seconds(self, work: Work) -> float:
        return self.rates.seconds(work, self.dtype, self.threads) * self.crowding


def stage_speed(
    recipe: Recipe,
    name: str,
    sizes: Sizes,
    machine: Machine,
    strategy: StrategyName,
    rates: Rates | None = None,
    fill: float = FILL,
) -> Speed:
    """A step of a stage. `rates`: of a thread of the machine, where they were measured; `fill`: usual length of rows
    as a share of the longest."""
    stage = recipe.stages[name]
    workers = _workers(recipe, stage, machine, rates or CPU)
    if isinstance(stage, PpoStage):
        return _ppo(recipe, stage, sizes, machine, workers, {r.role: r for r in requests(name, stage)})
    micro = usual_micro(stage, fill)
    members = stage.members if isinstance(stage, Reward) else 1
    computed = Computation(sizes, stage.method, recipe.model.dtype, stage.train.memory).step(micro) * members
    sent = members * _sent(recipe, stage, sizes, strategy, micro.count)
    count = workers_of(stage).count
    return Speed(
        count * micro.count * micro.tokens,
        workers.seconds(computed),
        0.0 if count == 1 else sent / _link(stage, machine),
    )


def usual_micro(stage: Supervised, fill: float = FILL) -> Micro:
    """The micro-batches of a worker's step where rows are of the usual length."""
    batch = stage.train.batch
    rows = batch.rows * (2 if stage.kind == "reward" else 1) / workers_of(stage).count
    length = fill * batch.max_length
    count = max(1, math.ceil(rows * length / max(batch.micro_tokens, length)))
    tokens = rows * length / count
    return Micro(count, tokens, length, ANSWER_SHARE[1] * tokens if stage.kind == "sft" else 0.0)


def _workers(recipe: Recipe, stage: Stage, machine: Machine, rates: Rates) -> _Workers:
    workers = workers_of(stage)
    if workers.gpus and machine.gpu is not None:
        return _Workers(of_gpu(machine.gpu), recipe.model.dtype, 1, 1 / min(1.0, workers.gpus))
    threads = workers.threads or math.ceil(workers.cpus)
    largest = max(node.cpus for node in machine.nodes)
    there = math.ceil(workers.count / len(machine.nodes))
    return _Workers(rates, recipe.model.dtype, threads, max(1.0, there * threads / max(1.0, largest)))


def _sent(recipe: Recipe, stage: Supervised, sizes: Sizes, strategy: StrategyName, micro_batches: float) -> float:
    """Bytes of a step that a worker sends to others."""
    workers, method = workers_of(stage), stage.method
    gradients = FP32 * sum(tensor.numel for tensor in [*trained(method, sizes), *head_of(sizes, stage)])
    share, spread = (workers.count - 1) / workers.count, sharding(workers, strategy)
    if not spread.whole_model:
        return share * 2 * gradients  # an all-reduce, or a reduce-scatter and a gather
    wide = spread.float32_base or trains_base(method)
    weights = sizes.total * (FP32 if wide else BYTES[recipe.model.dtype])
    return share * (2 * weights * micro_batches + gradients)  # gathered for each pass; gradients are scattered


def _link(stage: Stage, machine: Machine) -> float:
    """Bytes a second that a worker sends: within a node, or between nodes where it takes more than one."""
    workers = workers_of(stage)
    if not workers.gpus or machine.gpu is None:
        return _CPU_LINK
    within = max(node.gpus for node in machine.nodes) >= workers.count * workers.gpus
    return machine.gpu.link if within else min(machine.gpu.link, _NETWORK_LINK)


def _ppo(
    recipe: Recipe, stage: PpoStage, sizes: Sizes, machine: Machine, workers: _Workers, asked: dict[str, Request]
) -> Speed:
    """Sampling, two scored passes of policy and of reward model, and the updates of policy and critic."""
    samples = stage.prompts_per_step * stage.samples_per_prompt
    answers = samples * stage.rollout.sampling.max_new_tokens
    rows = (answers + FILL * samples * stage.max_prompt_tokens) / stage.workers.count
    count = max(1.0, rows / stage.micro_tokens)
    length = rows * stage.workers.count / samples
    written = Micro(count, rows / count, length, rows / count * answers / (rows * stage.workers.count))
    read = Micro(count, rows / count, length, 0.0)

    def computation(method: Method, memory: Memory) -> Computation:
        return Computation(sizes, method, recipe.model.dtype, memory)

    policy = computation(method_of(recipe, stage.policy), stage.memory)
    reward = computation(method_of(recipe, stage.reward), stage.memory)
    scored = policy.forward(written) * 2 + reward.forward(read) * 2
    updates = (policy.update() + reward.update()) * stage.ppo.minibatches
    updated = (policy.passes(written) + reward.passes(read) + updates) * stage.ppo.epochs
    sampled = answers / _sampling_rate(stage, asked["engine"], sizes, machine, workers.rates, recipe.model.dtype)
    return Speed(answers, workers.seconds(scored + updated), sampling=sampled)


def _sampling_rate(
    stage: PpoStage, engines: Request, sizes: Sizes, machine: Machine, rates: Rates, dtype: str
) -> float:
    """Tokens a second of all engines: bound by arithmetic on CPU, by reading the weights on GPU."""
    arithmetic = 2 * sizes.total
    if not engines.gpus or machine.gpu is None:
        threads = min(stage.rollout.threads, cores(engines, machine))
        costs = (CPU if rates.launches else rates).costs[dtype]
        return engines.count * threads / (arithmetic * (costs["product_flops"] + costs["product_bytes"] / 4))
    share = engines.count * min(1.0, engines.gpus)
    sequences = min(_SEQUENCES, stage.prompts_per_step * stage.samples_per_prompt / engines.count)
    reading = sequences * _DECODE_EFFICIENCY * machine.gpu.bandwidth / (sizes.total * BYTES[dtype])
    return share * min(reading, 1 / (arithmetic * of_gpu(machine.gpu).costs[dtype]["product_flops"]))
