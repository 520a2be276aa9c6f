"""Tokens a second by counting multiplications. Good to a factor of three where the hardware is as assumed."""

from triptych.models.sizes import Sizes
from triptych.plan.machines import CORE_FLOPS, GPU_EFFICIENCY, Machine
from triptych.plan.memory import ANSWER_SHARE, BYTES, method_of, trainable_parameters
from triptych.plan.placement import Request, cores, requests
from triptych.recipe import Lora, PpoStage, Recipe, Stage

_FILL = 0.5
"""Length of rows as a share of the longest allowed."""
_DECODE_EFFICIENCY = 0.5
"""Share of a GPU's memory bandwidth that decoding sustains."""
_SEQUENCES = 256
"""Sequences that an engine decodes at once, at most."""


def tokens_per_second(recipe: Recipe, name: str, sizes: Sizes, machine: Machine) -> float:
    """SFT and reward: tokens trained on. PPO: tokens of answers, over the whole step. All workers together."""
    stage, dtype = recipe.stages[name], recipe.model.dtype
    asked = {request.role: request for request in requests(name, stage)}
    workers = asked["worker"]
    rate = workers.count * _flops(stage, workers, machine, dtype)
    if not isinstance(stage, PpoStage):
        return rate / _train_flops(sizes, stage.method, scores=stage.kind == "reward")
    answers = stage.prompts_per_step * stage.samples_per_prompt * stage.rollout.sampling.max_new_tokens
    rows = answers + _FILL * stage.prompts_per_step * stage.samples_per_prompt * stage.max_prompt_tokens
    policy, reward = method_of(recipe, stage.policy), method_of(recipe, stage.reward)
    scored = 2 * _forward_flops(sizes, policy, False) + 2 * _forward_flops(sizes, reward, True)
    updated = stage.ppo.epochs * (_train_flops(sizes, policy, False) + _train_flops(sizes, reward, True))
    learning = rows * (scored + updated) / rate
    return answers / (learning + answers / _sampling_rate(stage, asked["engine"], sizes, machine, dtype))


def _flops(stage: Stage, workers: Request, machine: Machine, dtype: str) -> float:
    """FLOP/s of one worker."""
    if workers.gpus and machine.gpu is not None:
        return GPU_EFFICIENCY * machine.gpu.flops[dtype] * workers.gpus
    group = stage.workers if isinstance(stage, PpoStage) else stage.train.workers
    return CORE_FLOPS[dtype] * min(group.threads or cores(workers, machine), cores(workers, machine))


def _forward_flops(sizes: Sizes, method: Lora, scores: bool) -> float:
    """FLOPs a token: two for every weight, the output head only where a token has logits."""
    head = 0.0 if scores else ANSWER_SHARE[1] * sizes.embedding
    return 2 * (sizes.layers * sizes.layer + head + trainable_parameters(sizes, method, scores))


def _train_flops(sizes: Sizes, method: Lora, scores: bool) -> float:
    """Forward, gradients of activations, and gradients of the adapter's weights; the base's have none."""
    return 2 * _forward_flops(sizes, method, scores) + 2 * trainable_parameters(sizes, method, scores)


def _sampling_rate(stage: PpoStage, engines: Request, sizes: Sizes, machine: Machine, dtype: str) -> float:
    """Tokens a second of all engines: bound by arithmetic on CPU, by reading the weights on GPU."""
    arithmetic = 2 * sizes.total
    if not engines.gpus or machine.gpu is None:
        threads = min(stage.rollout.threads, cores(engines, machine))
        return engines.count * threads * CORE_FLOPS[dtype] / arithmetic
    share = engines.count * min(1.0, engines.gpus)
    sequences = min(_SEQUENCES, stage.prompts_per_step * stage.samples_per_prompt / engines.count)
    reading = sequences * _DECODE_EFFICIENCY * machine.gpu.bandwidth / (sizes.total * BYTES[dtype])
    return share * min(reading, GPU_EFFICIENCY * machine.gpu.flops[dtype] / arithmetic)
