"""The memory of a stage's step, traced: the learner's own step runs on tensors without numbers, at two small depths.

Between the beginning and the end of a block, what is alive is linear in the number of blocks. So each moment of a step
is extrapolated by itself, and the peak is that of the moment that needs most.
"""

from collections import Counter
from typing import Any

import torch

from triptych.models.sizes import Sizes
from triptych.plan.activations import BYTES
from triptych.plan.amounts import Bytes, Parts
from triptych.plan.live import LiveMemory, converting
from triptych.plan.memory import method_of, micro_batch
from triptych.plan.rehearsal import Rehearsal, accumulated, random_base, rehearse
from triptych.plan.sharding import Sharding
from triptych.plan.worker import MicroBatch
from triptych.recipe import Method, PpoStage, Recipe, Stage
from triptych.recipe.method import Freeze, parts_of
from triptych.train.strategies.base import LOSS_SCALE, VALUE

DEPTHS = (2, 3)
WARM = MicroBatch(tokens=64, length=32)
"""A first small step, which makes the optimizer's state."""
FULL = (0.9, 1.0, 1.1)
"""Interval of what was traced: of a full micro-batch."""

Moments = dict[str, Counter[str]]
"""Moment of a step -> bytes by part of what was alive when that was most."""


def traced(
    recipe: Recipe, name: str, roles: dict[str, Parts], sizes: Sizes, spread: Sharding, *, on_gpu: bool
) -> dict[str, Parts]:
    """The roles with what a step works with as it was traced; what lasts, and what a strategy adds, stays as it is.

    `on_gpu`: its attention keeps what a CPU's in 16 bits computes again.
    """
    if spread.float32_base:  # another model than the one that is traced
        return roles
    found = trace(recipe, name, sizes.layers)
    extra = _attention(recipe, recipe.stages[name], sizes) if on_gpu else 0
    return {
        role: _replaced(parts, found[role], spread, extra) if role in found else parts for role, parts in roles.items()
    }


def trace(recipe: Recipe, name: str, layers: int) -> dict[str, Counter[str]]:
    """Role -> bytes by part at the peak of its step, of one process that has everything to itself."""
    depths = _depths(recipe, recipe.stages[name], layers)
    low, high = (_moments(recipe, name, depth) for depth in (depths[0], depths[-1]))
    steps = (layers - depths[0]) / max(depths[-1] - depths[0], 1)
    return {role: _peak(low[role], high[role], steps) for role in low}


def _depths(recipe: Recipe, stage: Stage, layers: int) -> tuple[int, ...]:
    """Depths to trace: all blocks where the method tells one from another."""
    refs = (stage.policy, stage.reward) if isinstance(stage, PpoStage) else ()
    methods = [method_of(recipe, ref) for ref in refs] or [stage.method]  # type: ignore[union-attr]
    if layers <= DEPTHS[-1] or any(_names_blocks(method) for method in methods):
        return (layers,)
    last = max((part.layers for method in methods for part in parts_of(method) if isinstance(part, Freeze)), default=0)
    return DEPTHS if last < DEPTHS[0] else (last + 1, last + 2) if last + 2 <= layers else (layers,)


def _names_blocks(method: Method) -> bool:
    for part in parts_of(method):
        if isinstance(part, Freeze):
            if part.train:
                return True
        elif any(getattr(part, field, None) for field in ("layers", "rank_pattern", "alpha_pattern", "drop_layers")):
            return True
    return False


def _peak(low: Moments, high: Moments, steps: float) -> Counter[str]:
    """The moment that needs most, so many steps from one depth to the other beyond the first."""
    found = [
        Counter({part: round(one[part] + steps * (two[part] - one[part])) for part in one | two})
        for one, two in ((low[moment], high[moment]) for moment in low.keys() & high.keys())
    ]
    return max(found, key=Counter.total)


def _moments(recipe: Recipe, name: str, depth: int) -> dict[str, Moments]:
    """By role, at a depth."""
    stage, found = recipe.stages[name], {}
    limit, count = micro_batch(stage), accumulated(stage)
    live = LiveMemory()
    with converting(), live, torch.random.fork_rng(devices=[]):
        base = random_base(recipe.model, depth)
        live.vocab = int(base.config.vocab_size)
        rehearsal = rehearse(recipe, name, base, "single")
        _watch(live, rehearsal)
        rehearsal.step(WARM)
        states = (s for s in rehearsal.learner.strategy.slices() if s.name.split("/")[1] not in (VALUE, LOSS_SCALE))
        live.own("optimizer", [state.values for state in states])
        for objective in rehearsal.objectives:
            live.forget()
            live.mark("begin")
            rehearsal.learner.step(objective, [rehearsal.batch(limit) for _ in range(count)])
            found[objective.role] = dict(live.peaks)
    return found


def _watch(live: LiveMemory, rehearsal: Rehearsal) -> None:
    """Tell apart the model's parameters, their gradients, and the moments of a step."""
    model = rehearsal.learner.model
    live.own("weights", [*model.parameters(), *model.buffers()])
    for named in rehearsal.learner.strategy.parameters.values():
        live.own("adapter", named.values())
        for parameter in named.values():
            parameter.register_post_accumulate_grad_hook(lambda p: live.own("gradients", [p.grad]))
    blocks = model.blocks()
    for number, block in enumerate(blocks):
        place = "last" if number == len(blocks) - 1 else "middle" if number else "first"
        block.register_forward_pre_hook(lambda *_, place=place: _forward(live, place))
        block.register_forward_hook(lambda _, __, out, place=place: _backward(live, place, out))


def _forward(live: LiveMemory, place: str) -> None:
    if torch._C._current_graph_task_id() < 0:  # not computed again in the backward pass
        live.mark(f"forward {place}")


def _backward(live: LiveMemory, place: str, out: Any) -> None:
    """A block has ended; its backward pass begins when the gradient of its output is there."""
    if torch._C._current_graph_task_id() >= 0:
        return
    if place == "last":
        live.mark("loss")
    states = out[0] if isinstance(out, tuple) else out
    if states.requires_grad:
        states.register_hook(lambda _: live.mark(f"backward {place}"))


def _replaced(parts: Parts, peak: Counter[str], spread: Sharding, extra: int) -> Parts:
    """A role's parts with those of its traced peak."""
    found = dict(parts)
    found["activations"] = Bytes.scaled(peak["activations"] + extra, FULL)
    if not spread.whole_model:
        found["casts"] = Bytes.scaled(peak["casts"], FULL)
    if "logits" in parts:  # the share of tokens that are learned is not known
        closed = parts["logits"]
        shares = tuple(amount / max(closed.expected, 1) for amount in (closed.low, closed.expected, closed.high))
        found["logits"] = Bytes.scaled(peak["logits"], shares)  # type: ignore[arg-type]
    if "gradients" in parts:
        share = min(1.0, peak["gradients"] / max(parts["gradients"].expected * spread.gradients, 1))
        found["gradients"] = Bytes.scaled(parts["gradients"].expected, (share, share, 1.0))
    return found


def _attention(recipe: Recipe, stage: Stage, sizes: Sizes) -> int:
    """Outputs and log-sum-exps that attention on a GPU keeps of packed rows in 16 bits."""
    memory = stage.memory if isinstance(stage, PpoStage) else stage.train.memory
    size = BYTES[recipe.model.dtype]
    if memory.checkpointing != "none" or not recipe.model.packing or size == BYTES["float32"]:
        return 0
    return sizes.layers * micro_batch(stage).tokens * sizes.heads * (size * sizes.head_dim + BYTES["float32"])
