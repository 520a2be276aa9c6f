"""Tokens a second by counting multiplications. Good to a factor of three where the hardware is as assumed."""

from triptych.methods.flops import Work, forward_flops, train_flops
from triptych.models.sizes import Sizes
from triptych.plan.activations import BYTES
from triptych.plan.machines import CORE_FLOPS, GPU_EFFICIENCY, Machine
from triptych.plan.memory import method_of, micro_batch
from triptych.plan.placement import Request, cores, requests
from triptych.plan.worker import ANSWER_SHARE
from triptych.recipe import Memory, Method, PpoStage, Recipe, Reward, Stage, workers_of

_FILL = 0.5
"""Length of rows as a share of the longest allowed."""
_DECODE_EFFICIENCY = 0.5
"""Share of a GPU's memory bandwidth that decoding sustains."""
_AGAIN = {"none": 0.0, "selective": 0.5, "full": 1.0}
"""Share of the blocks' forward pass that checkpointing computes a second time."""
_SEQUENCES = 256
"""Sequences that an engine decodes at once, at most."""


def tokens_per_second(recipe: Recipe, name: str, sizes: Sizes, machine: Machine) -> float:
    """SFT and reward: tokens trained on. PPO: tokens of answers, over the whole step. All workers together."""
    stage, dtype = recipe.stages[name], recipe.model.dtype
    asked = {request.role: request for request in requests(name, stage)}
    workers = asked["worker"]
    rate = workers.count * _flops(stage, workers, machine, dtype)
    if not isinstance(stage, PpoStage):
        members = stage.members if isinstance(stage, Reward) else 1
        work = _token(stage, logits=stage.kind == "sft")
        return rate / (members * _computed(sizes, stage.method, work, stage.train.memory))
    answers = stage.prompts_per_step * stage.samples_per_prompt * stage.rollout.sampling.max_new_tokens
    rows = answers + _FILL * stage.prompts_per_step * stage.samples_per_prompt * stage.max_prompt_tokens
    policy, reward = method_of(recipe, stage.policy), method_of(recipe, stage.reward)
    written, read = _token(stage, logits=True), _token(stage, logits=False)
    scored = 2 * forward_flops(sizes, policy, written) + 2 * forward_flops(sizes, reward, read)
    updated = stage.ppo.epochs * sum(
        _computed(sizes, method, work, stage.memory) for method, work in ((policy, written), (reward, read))
    )
    learning = rows * (scored + updated) / rate
    return answers / (learning + answers / _sampling_rate(stage, asked["engine"], sizes, machine, dtype))


def _flops(stage: Stage, workers: Request, machine: Machine, dtype: str) -> float:
    """FLOP/s of one worker."""
    if workers.gpus and machine.gpu is not None:
        return GPU_EFFICIENCY * machine.gpu.flops[dtype] * workers.gpus
    threads = workers_of(stage).threads
    return CORE_FLOPS[dtype] * min(threads or cores(workers, machine), cores(workers, machine))


def _computed(sizes: Sizes, method: Method, work: Work, memory: Memory) -> float:
    """FLOPs of a forward and a backward pass, with what is computed twice."""
    again = forward_flops(sizes, method, Work(work.tokens, 0, work.attended))
    return train_flops(sizes, method, work) + _AGAIN[memory.checkpointing] * again


def _token(stage: Stage, *, logits: bool) -> Work:
    """The work of one token in a row of usual length, with logits or behind a head that reads hidden states."""
    length = _FILL * micro_batch(stage).length
    return Work(1, ANSWER_SHARE[1] if logits else 0, (length + 1) / 2)


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
