"""Step time and tokens per second: the workload at the machine's rates, communication, and sampling."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from triptych.methods.parameters.total import trained
from triptych.models.sizes import Sizes
from triptych.plan.activations import BYTES, FP32
from triptych.plan.engine_speed import judging_seconds, sampling_rate
from triptych.plan.machines import Machine
from triptych.plan.memory import head_of
from triptych.plan.placement import ENGINE, Request, engine_of, requests
from triptych.plan.rates import CPU, Rates, of_gpu
from triptych.plan.sharding import sharding
from triptych.plan.workload import Computation, Micro, Workload
from triptych.recipe import Method, Recipe, RoleSpec, TrainedStage, Workers
from triptych.recipe.method import trains_base
from triptych.recipe.training import StrategyName
from triptych.recipe.work_shape import ANSWER_SHARE, MicroBatch, SamplingShape

FILL = 0.5
"""Length of rows as a share of the longest allowed."""
_CPU_LINK = 1.5e9
"""Bytes a second between workers on CPUs, by gloo."""
_NETWORK_LINK = 2.5e10
"""Bytes a second that a GPU has of the network between nodes: one of 200 Gbit/s."""


@dataclass(frozen=True)
class Speed:
    """Time and tokens of one step of a stage, all workers together."""

    tokens: float
    """Tokens trained on in supervised stages; tokens of answers in RL."""
    computing: float
    """Seconds of passes and updates."""
    communicating: float = 0.0
    sampling: float = 0.0
    """Seconds in which engines write answers."""
    judging: float = 0.0
    """Seconds in which engines of a teacher judge answers."""
    at_least: str | None = None
    """Reason why a step may take longer, as a sentence; None: nothing of that kind is known."""

    @property
    def step_seconds(self) -> float:
        """Seconds of a step: computing, communicating, sampling and judging in turn."""
        return self.computing + self.communicating + self.sampling + self.judging

    @property
    def tokens_per_second(self) -> float:
        """Tokens of a step over its seconds."""
        return self.tokens / self.step_seconds

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        seconds = {"computing": self.computing, "communicating": self.communicating, "sampling": self.sampling}
        seconds |= {"judging": self.judging}
        return {"tokens": self.tokens, "step_seconds": self.step_seconds, "seconds": seconds, "at_least": self.at_least}


@dataclass(frozen=True)
class UsualRow:
    """A sequence of the usual length."""

    fill: float = FILL
    """Its length as a share of the longest allowed; of prompts, where a stage samples its rows."""
    learned: float = ANSWER_SHARE[1]
    """Share of its tokens that are learned."""

    @classmethod
    def of(cls, stage: TrainedStage, batch: MicroBatch | None) -> "UsualRow":
        """By the largest micro-batch of the stage's data; assumed where they were not read."""
        if batch is None or batch.usual is None:
            return cls()
        shape = stage.shape()
        longest = shape.longest if shape.sampling is None else shape.sampling.max_prompt_tokens
        return cls(batch.usual / longest, batch.learned[1])


@dataclass(frozen=True)
class ComputeRates:
    """The hardware that a stage's workers compute on."""

    rates: Rates
    dtype: str
    threads: int
    crowding: float
    """Number of threads that share a core."""

    def seconds(self, work: Workload) -> float:
        """Time that one worker takes for some work."""
        return self.rates.seconds(work, self.dtype, self.threads) * self.crowding


def stage_speed(
    recipe: Recipe,
    name: str,
    sizes: Sizes,
    machine: Machine,
    strategy: StrategyName,
    rates: Rates | None = None,
    row: UsualRow = UsualRow(),
) -> Speed:
    """Predicted time of one step of a stage.

    Args:
        name: the stage.
        strategy: what `workers.strategy` resolves to.
        rates: measured speed of one thread of the machine; None: assumed.
        row: a sequence of the usual length.
    """
    stage = recipe.trained[name]
    workers = compute_rates(recipe, stage.workers, machine, rates or CPU)
    sampling, engines = stage.shape().sampling, stage.engines
    if sampling is not None and engines is not None:
        asked = {request.role: request for request in requests(name, stage)}
        rate = sampling_rate(sampling, engines, asked[ENGINE], sizes, machine, workers.rates, recipe.model.dtype)
        step = _sampled_step(recipe, stage, sampling, sizes, workers, rate, row.fill)
        return replace(step, judging=_judging(stage, sampling, asked, machine, workers.rates, row.fill))
    micro, roles = usual_micro(stage, row), stage.trained_roles(recipe.stages)
    computed = _computation(recipe, stage, sizes, roles[0].method).step(micro) * len(roles)
    sent = sum(_sent(recipe, stage, role, sizes, strategy, micro.count) for role in roles)
    count = stage.workers.count
    return Speed(
        count * micro.count * micro.tokens,
        workers.seconds(computed),
        0.0 if count == 1 else sent / _link(stage, machine),
    )


def usual_micro(stage: TrainedStage, row: UsualRow) -> Micro:
    """The micro-batches of a worker's step where rows are of the usual length."""
    shape = stage.shape()
    rows = shape.sequences_per_update / stage.workers.count
    length = row.fill * shape.longest
    count = max(1, math.ceil(rows * length / max(stage.train.batch.micro_tokens, length)))
    tokens = rows * length / count
    return Micro(count, tokens, length, row.learned * tokens if shape.logits else 0.0)


def _computation(recipe: Recipe, stage: TrainedStage, sizes: Sizes, method: Method) -> Computation:
    return Computation(sizes, method, recipe.model.dtype, stage.train.memory)


def compute_rates(recipe: Recipe, workers: Workers, machine: Machine, rates: Rates) -> ComputeRates:
    """The hardware of a group of workers; `rates`: of one thread of the machine."""
    if workers.gpus and machine.gpu is not None:
        return ComputeRates(of_gpu(machine.gpu), recipe.model.dtype, 1, 1 / min(1.0, workers.gpus))
    threads = workers.threads or math.ceil(workers.cpus)
    largest = max(node.cpus for node in machine.nodes)
    there = math.ceil(workers.count / len(machine.nodes))
    return ComputeRates(rates, recipe.model.dtype, threads, max(1.0, there * threads / max(1.0, largest)))


def _sent(
    recipe: Recipe, stage: TrainedStage, role: RoleSpec, sizes: Sizes, strategy: StrategyName, micro_batches: float
) -> float:
    """Bytes that a worker sends to others in one step of one role."""
    workers, method = stage.workers, role.method
    gradients = FP32 * sum(tensor.numel for tensor in [*trained(method, sizes), *head_of(sizes, role)])
    share, spread = (workers.count - 1) / workers.count, sharding(workers, strategy)
    if not spread.whole_model:
        return share * 2 * gradients  # an all-reduce, or a reduce-scatter and a gather
    wide = spread.float32_base or trains_base(method)
    weights = sizes.total * (FP32 if wide else BYTES[recipe.model.dtype])
    return share * (2 * weights * micro_batches + gradients)  # gathered for each pass; gradients are scattered


def _link(stage: TrainedStage, machine: Machine) -> float:
    """Bytes per second between workers: within a node, or between nodes where the stage takes more than one."""
    workers = stage.workers
    if not workers.gpus or machine.gpu is None:
        return _CPU_LINK
    within = max(node.gpus for node in machine.nodes) >= workers.count * workers.gpus
    return machine.gpu.link if within else min(machine.gpu.link, _NETWORK_LINK)


def _sampled_step(
    recipe: Recipe,
    stage: TrainedStage,
    sampling: SamplingShape,
    sizes: Sizes,
    workers: ComputeRates,
    rate: float,
    fill: float,
) -> Speed:
    """An RL step: sampling at `rate` tokens per second, a scoring pass of each role, updates of the trained ones.

    `fill`: usual length of prompts as a share of the longest.
    """
    samples, ranks = sampling.samples, stage.workers.count
    answers = samples * sampling.max_new_tokens
    rows = _sampled_tokens(sampling, fill) / ranks
    count = max(1.0, rows / stage.train.batch.micro_tokens)
    length = rows * ranks / samples
    written = Micro(count, rows / count, length, rows / count * answers / (rows * ranks))
    read = Micro(count, rows / count, length, 0.0)

    scored, updated = Workload(), Workload()
    for role in stage.roles(recipe.stages):
        computed = _computation(recipe, stage, sizes, role.method)
        micro = read if role.head else written
        scored += computed.forward(micro)
        if role.trained:
            learned = computed.passes(micro) + computed.update() * sampling.minibatches
            updated += learned * role.updates * role.learning
    seconds = workers.seconds(scored + updated * sampling.epochs)
    return Speed(answers, seconds, sampling=answers / rate, at_least=sampling.more)


def _sampled_tokens(sampling: SamplingShape, fill: float) -> float:
    """Tokens of all samples of a step, prompts included, of which `fill` is the usual share of the longest."""
    return sampling.samples * (sampling.max_new_tokens + fill * sampling.max_prompt_tokens)


def _judging(
    stage: TrainedStage,
    sampling: SamplingShape,
    asked: Mapping[str, Request],
    machine: Machine,
    rates: Rates,
    fill: float,
) -> float:
    """Seconds in which engines of models of their own judge the samples of a step."""
    tokens = _sampled_tokens(sampling, fill)
    return sum(
        judging_seconds(
            one, asked[engine_of(one.name)], machine, rates, tokens=tokens, length=tokens / sampling.samples
        )
        for one in stage.engine_models
    )
