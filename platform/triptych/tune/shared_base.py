"""An executor whose trials share one frozen base in one process: each driver sends its stage to one trainer actor.

Files, stopping and resuming are the same as for trials that are Ray Train runs.
"""

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from triptych.errors import RunError, UserError
from triptych.measure import traced
from triptych.observe.progress import Progress
from triptych.plan import Machine, estimate
from triptych.recipe import Lora, Recipe, TrainingBase, with_values
from triptych.stages.context import StageContext
from triptych.stages.supervised.training import Learn
from triptych.train import checkpoint
from triptych.tune.executor import CostMeter, Executor, OnRayTrain, context_of, follow
from triptych.tune.shared_trainer import start_trainer
from triptych.tune.trial import Report, Trial

_MOST = 8
"""Trials in one process: more would not fill passes better, and the search would know fewer results when it asks."""
_INITS = ("default", "gaussian", "orthogonal")
_OWN = ("adapter", "gradients", "optimizer")
"""Parts of a stage's memory that are not shared by its trials."""


_WAITED = ("seconds_beside", "seconds_other")
"""Columns of a metrics row that are not the trial's own: the other trials' time, and waiting for the sweep."""

log = logging.getLogger(__name__)


def executor_for(recipe: Recipe, recipes: Sequence[Recipe], progress: Progress) -> Executor:
    """The executor that a recipe's sweep asks for.

    Args:
        recipe: has the sweep.
        recipes: the recipe at points that stand for the sweep's space.
        progress: gets the trials' progress.

    Raises:
        UserError: `sweep.shared_base` is true, and the trials cannot share a base.
    """
    sweep = recipe.sweep
    assert sweep is not None
    reason = reason_not_shared(recipes, sweep.stage) if sweep.shared_base else None
    if sweep.shared_base is True and reason:
        raise UserError(f"sweep.shared_base: {reason}")
    if reason:
        log.info("each trial has a base of its own: %s", reason)
    if reason or not sweep.shared_base:
        return OnRayTrain(progress)
    return SharedBase.start(recipes[0], sweep.stage, progress)


def reason_not_shared(recipes: Sequence[Recipe], stage: str) -> str | None:
    """The reason why these trials cannot share a base in one process; None if they can."""
    first = recipes[0]
    for recipe in recipes:
        if reason := _reason_of_one(recipe, stage):
            return reason
        if recipe.model != first.model:
            return "the trials differ in `model`; allowed: one base in one precision"
        own, others = _training(recipe, stage), _training(first, stage)
        if (own.memory, own.workers) != (others.memory, others.workers):
            return f"the trials differ in stages.{stage}.train.memory or workers; allowed: one of both for all"
    return None


def _reason_of_one(recipe: Recipe, name: str) -> str | None:
    stage = recipe.trained[name]
    if stage.engines is not None:
        return f"stages.{name}: it has engines of its own; allowed: stages that learn from rows"
    method, workers, members = stage.own_method, stage.workers, len(stage.trained_roles(recipe.stages))
    where = f"stages.{name}.method"
    if not isinstance(method, Lora):
        return f"{where}: {getattr(method, 'name', 'a list')} changes more than rows of its own; allowed: lora"
    if method.dropout:
        return f"{where}.dropout {method.dropout:g}: its masks would depend on the other trials; allowed: 0"
    if method.init not in _INITS:
        return f"{where}.init {method.init}: allowed: {', '.join(_INITS)}"
    if method.freeze_a:
        return f"{where}.freeze_a: allowed: false"
    if members > 1:
        return f"stages.{name}.members {members}: allowed: 1"
    if recipe.model.quantization:
        return f"model.quantization {recipe.model.quantization}: allowed: none"
    if workers.count > 1 or workers.strategy not in ("auto", "single"):
        return f"stages.{name}.train.workers: one process has the base; allowed: count 1, strategy auto or single"
    return None


@dataclass(frozen=True)
class SharedBase:
    """Executor whose trials train in one actor."""

    progress: Progress
    trainer: Any
    """Handle of the actor."""

    @classmethod
    def start(cls, recipe: Recipe, stage: str, progress: Progress) -> "SharedBase":
        """Start the actor for trials like this recipe; it waits for its CPUs and GPUs."""
        return cls(progress, start_trainer(_training(recipe, stage).workers))

    def concurrency(self, recipes: list[Recipe], stage: str, machine: Machine) -> int:
        """See Executor."""
        return min(max_concurrent(recipe, stage, machine) for recipe in recipes)

    def run(self, trial: Trial) -> Iterator[Report]:
        """See Executor."""
        if reason := reason_not_shared([trial.recipe], trial.stage):
            raise UserError(f"sweep.shared_base: {reason}")
        ctx = replace(context_of(trial, self.progress), trainer=OnActor(self.trainer))
        yield from follow(trial, ctx, SharedCostMeter(trial, ctx))

    def stop(self, name: str) -> None:
        """See Executor."""
        with contextlib.suppress(RayActorError):  # then its trials are told
            ray.get(self.trainer.drop.remote(name))

    def close(self) -> None:
        """See Executor."""
        ray.kill(self.trainer)


@dataclass(frozen=True)
class OnActor:
    """A stage's `Trainer` that sends the stage to the actor."""

    actor: Any

    def train(self, ctx: StageContext[Any], learn: Learn) -> None:
        """Train the stage in the actor. RunError if the actor's process dies, or with the error of the stage."""
        try:
            ray.get(self.actor.train.remote(ctx, learn))
        except RayTaskError as error:
            if isinstance(error.cause, UserError | RunError):
                raise error.cause from error
            raise RunError(f"stage {ctx.name}: {error.cause}") from error
        except RayActorError as error:
            raise RunError(f"stage {ctx.name}: the process with the shared base died: {error}") from error


class SharedCostMeter(CostMeter):
    """Cost of a trial on a shared device: the time of its own rows, evaluations and checkpoints."""

    def __init__(self, trial: Trial, ctx: StageContext[Any]) -> None:
        super().__init__(trial, ctx)
        last = checkpoint.latest(ctx.checkpoints)
        self._begun = last.step if last else 0

    def seconds(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """Sum of the trial's own parts of its rows since this run began."""
        own = (row for row in rows if row["step"] > self._begun)
        parts = (item for row in own for item in row.items())
        return sum(value for key, value in parts if key.startswith("seconds_") and key not in _WAITED)


def _training(recipe: Recipe, stage: str) -> TrainingBase:
    return recipe.trained[stage].train


def max_concurrent(recipe: Recipe, stage: str, machine: Machine) -> int:
    """Number of trials like this one that fit in memory: one fullest pass for all, and each trial's own tensors."""
    rows = recipe.trained[stage].shape().rows_per_update * _MOST
    try:
        full = with_values(recipe, {f"stages.{stage}.train.batch.rows": rows})
        planned = estimate(full, machine=machine, stage=stage, trace=traced).stages[stage]
    except UserError:  # no room for passes of several
        return 1
    own = sum(size.expected for role in planned.roles.values() for part, size in role.parts.items() if part in _OWN)
    room = min(device.capacity - device.peak.expected for device in planned.devices.values())
    return max(1, min(_MOST, 1 + room // max(own, 1)))
