"""Speed of engines: tokens that they write, and sequences that they judge."""

from triptych.models.sizes import Sizes, model_sizes
from triptych.plan.activations import BYTES
from triptych.plan.machines import Machine
from triptych.plan.placement import Request, cores
from triptych.plan.rates import CPU, Rates, of_gpu
from triptych.plan.workload import Computation, Micro
from triptych.recipe import Engines, Full, Memory
from triptych.recipe.rollout import EngineModel
from triptych.recipe.work_shape import SamplingShape

_DECODE_EFFICIENCY = 0.5
"""Share of a GPU's memory bandwidth that decoding sustains."""
_SEQUENCES = 256
"""Sequences that an engine decodes at once, at most."""
_READ_AT_ONCE = 2048
"""Tokens of prompts that an engine reads at once, at most."""


def sampling_rate(
    sampling: SamplingShape,
    rollout: Engines,
    engines: Request,
    sizes: Sizes,
    machine: Machine,
    rates: Rates,
    dtype: str,
) -> float:
    """Tokens a second of all engines: bound by arithmetic on CPU, by reading the weights on GPU."""
    arithmetic = 2 * sizes.total
    if not engines.gpus or machine.gpu is None:
        threads = min(rollout.threads, cores(engines, machine))
        costs = (CPU if rates.launches else rates).costs[dtype]
        return engines.count * threads / (arithmetic * (costs["product_flops"] + costs["product_bytes"] / 4))
    share = engines.count * min(1.0, engines.gpus)
    sequences = min(_SEQUENCES, sampling.samples / engines.count)
    reading = sequences * _DECODE_EFFICIENCY * machine.gpu.bandwidth / (sizes.total * BYTES[dtype])
    return share * min(reading, 1 / (arithmetic * of_gpu(machine.gpu).costs[dtype]["product_flops"]))


def judging_seconds(
    one: EngineModel, asked: Request, machine: Machine, rates: Rates, *, tokens: float, length: float
) -> float:
    """Seconds in which the engines of a model of its own give the log-probabilities of `tokens` tokens.

    They read sequences of `length` tokens, and compute logits at every token of them; each engine reads its share.
    """
    each = tokens / asked.count
    count = max(1.0, each / _READ_AT_ONCE)
    micro = Micro(count, each / count, length, each / count)
    frozen = Full()  # no adapter beside the weights
    work = Computation(model_sizes(one.model), frozen, one.model.dtype, Memory(loss_chunk=None)).forward(micro)
    if not asked.gpus or machine.gpu is None:
        threads = min(one.engines.threads, cores(asked, machine))
        return (CPU if rates.launches else rates).seconds(work, one.model.dtype, threads)
    return of_gpu(machine.gpu).seconds(work, one.model.dtype) / min(1.0, asked.gpus)
