"""Peak memory by dry run: the learner's own step on fake tensors, at two small depths.

Between the beginning and the end of a block, what is alive is linear in the number of blocks. So each moment of a step
is extrapolated by itself, and the peak is that of the moment that needs most.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from triptych.forward import attention
from triptych.measure.dry_run import DryRun, accumulated, dry_run, random_base
from triptych.measure.fake_memory import LiveMemory, Moments, converting, peak_at
from triptych.models.sizes import Sizes
from triptych.plan.amounts import Bytes, Parts
from triptych.plan.memory import micro_batch
from triptych.plan.sharding import Sharding
from triptych.recipe import Recipe, TrainedStage
from triptych.recipe.method import Freeze, parts_of
from triptych.recipe.work_shape import MicroBatch, Shares
from triptych.train.strategies.base import LOSS_SCALE, VALUE

UNTRACED = ("vblora", "shira")
"""Methods whose values decide what they compute, so that fake tensors cannot run their step."""
DEPTHS = (2, 3)
WARM = MicroBatch(tokens=64, length=32)
"""Micro-batch of a first small step, which makes the optimizer's state."""
FULL = (0.9, 1.0, 1.1)
"""Low, expected and high factor on traced memory of a full micro-batch."""


def traced(
    recipe: Recipe,
    name: str,
    roles: dict[str, Parts],
    sizes: Sizes,
    spread: Sharding,
    batch: MicroBatch | None = None,
    *,
    on_gpu: bool,
) -> dict[str, Parts]:
    """The roles with traced activations, casts, logits and gradients; other parts stay as they are.

    `batch`: the largest micro-batch of the stage's data; None: the largest that the recipe allows.
    """
    if spread.float32_base or any(part.name in UNTRACED for part in _parts(recipe, recipe.trained[name])):
        return roles  # another model than the one that is traced, or numbers decide what a step works with
    found = trace(recipe, name, sizes.layers, batch, on_gpu=on_gpu)
    fill = FULL if batch is None else batch.fill
    return {
        role: _replaced(parts, found[role], spread, fill) if role in found else parts for role, parts in roles.items()
    }


def trace(
    recipe: Recipe, name: str, layers: int, batch: MicroBatch | None = None, *, on_gpu: bool = False
) -> dict[str, Counter[str]]:
    """Role -> bytes by part at the peak of its step, in one unsharded process.

    Args:
        name: the stage.
        layers: blocks of the base.
        batch: as for `traced`.
        on_gpu: whether to trace attention as on a GPU.
    """
    depths = _depths(recipe, recipe.trained[name], layers)
    # Tensors without numbers need no GPU to attend by its operators.
    with patch.object(attention, "on_gpu", lambda query: True) if on_gpu else nullcontext():
        found = [_moments(recipe, name, depth, batch or micro_batch(recipe.trained[name])) for depth in depths]
    low, high = found[0], found[-1]
    steps = (layers - depths[0]) / max(depths[-1] - depths[0], 1)
    return {role: peak_at(low[role], high[role], steps) for role in low}


def _depths(recipe: Recipe, stage: TrainedStage, layers: int) -> tuple[int, ...]:
    """Depths to trace: two small ones, or all blocks where the method tells one from another."""
    parts = _parts(recipe, stage)
    if layers <= DEPTHS[-1] or any(_names_blocks(part) for part in parts):
        return (layers,)
    last = max((part.layers for part in parts if isinstance(part, Freeze)), default=0)
    return DEPTHS if last < DEPTHS[0] else (last + 1, last + 2) if last + 2 <= layers else (layers,)


def _parts(recipe: Recipe, stage: TrainedStage) -> list[Any]:
    """The single methods that those of a stage's trained roles consist of."""
    return [part for role in stage.trained_roles(recipe.stages) for part in parts_of(role.method)]


def _names_blocks(part: Any) -> bool:
    if isinstance(part, Freeze):
        return bool(part.train)
    return any(getattr(part, field, None) for field in ("layers", "rank_pattern", "alpha_pattern", "drop_layers"))


def _moments(recipe: Recipe, name: str, depth: int, limit: MicroBatch) -> dict[str, Moments]:
    """Moments of each role's step on a base of `depth` blocks."""
    found, count = {}, accumulated(recipe.trained[name], limit)
    live = LiveMemory()
    with converting(), live, _updates_marked(live), torch.random.fork_rng(devices=[]):
        base = random_base(recipe.model, depth)
        live.vocab = int(base.config.vocab_size)
        run = dry_run(recipe, name, base, "single")
        _watch(live, run)
        run.step(WARM)
        pieces = (piece for learner in run.learner.each for piece in learner.strategy.slices())
        states = (s for s in pieces if s.name.split("/")[1] not in (VALUE, LOSS_SCALE))
        live.own("optimizer", [state.values for state in states])
        for objective in run.objectives:
            live.forget()
            live.mark("begin")
            run.learner.step(objective, [run.batch(limit) for _ in range(count)])
            found[objective.role] = dict(live.peaks)
    return found


@contextmanager
def _updates_marked(live: LiveMemory) -> Iterator[None]:
    """Mark the optimizer's update as a moment of its own: it may be the peak."""
    hook = register_optimizer_step_pre_hook(lambda *_: live.mark("update"))
    try:
        yield
    finally:
        hook.remove()


def _watch(live: LiveMemory, run: DryRun) -> None:
    """Assign the models' parameters and gradients to parts, and watch their blocks."""
    for learner in run.learner.each:
        live.own("weights", [*learner.model.parameters(), *learner.model.buffers()])
        for named in learner.strategy.parameters.values():
            live.own("adapter", named.values())
            for parameter in named.values():
                parameter.register_post_accumulate_grad_hook(lambda p: live.own("gradients", [p.grad]))
        live.watch(learner.model.blocks())


def _replaced(parts: Parts, peak: Counter[str], spread: Sharding, fill: Shares) -> Parts:
    """The parts of a role, with the traced ones in place of the closed form's."""
    found = dict(parts)
    found["activations"] = Bytes.scaled(peak["activations"], fill)
    if not spread.whole_model:
        found["casts"] = Bytes.scaled(peak["casts"], fill)
    if "logits" in parts:  # the share of tokens that are learned is known of data only
        closed = parts["logits"]
        shares = tuple(amount / max(closed.expected, 1) for amount in (closed.low, closed.expected, closed.high))
        found["logits"] = Bytes.scaled(peak["logits"], shares)  # type: ignore[arg-type]
    if "gradients" in parts:
        share = min(1.0, peak["gradients"] / max(parts["gradients"].expected * spread.gradients, 1))
        found["gradients"] = Bytes.scaled(parts["gradients"].expected, (share, share, 1.0))
    return found
