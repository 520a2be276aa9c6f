"""How long a recipe takes, and what that costs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from triptych.plan.estimate import Estimate
from triptych.plan.placement import Placement
from triptych.recipe import Recipe, TrainedStage

ASSUMED_ROWS = 1000
"""Of a source whose rows are not known."""


@dataclass(frozen=True)
class StageDuration:
    """Of the training itself: loading, measuring and saving come on top."""

    steps: int
    rows: int | None
    """Of the training source; None: not known, and `ASSUMED_ROWS` are taken where steps depend on them."""
    seconds: float
    devices: float
    """GPUs, or else CPUs, that are taken meanwhile."""

    @property
    def device_hours(self) -> float:
        return self.seconds * self.devices / 3600


@dataclass(frozen=True)
class Duration:
    """Of a recipe, or of its stages that were asked for."""

    stages: Mapping[str, StageDuration]
    seconds: float
    """From the first stage's begin to the last one's end."""
    cost: float | None
    """By the machine's price an hour."""

    @property
    def device_hours(self) -> float:
        return sum(stage.device_hours for stage in self.stages.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        stages = {name: asdict(stage) | {"device_hours": stage.device_hours} for name, stage in self.stages.items()}
        return {"stages": stages, "seconds": self.seconds, "device_hours": self.device_hours, "cost": self.cost}


def duration(
    recipe: Recipe, found: Estimate, placement: Placement, rows: Mapping[str, int | None], price_per_hour: float | None
) -> Duration:
    """Of an estimate. `rows`: of the training source of each stage, None where they are not known; the price is that
    of the whole machine."""
    stages = {
        name: _stage(recipe.trained[name], estimate.speed.step_seconds, rows.get(name), placement, name)
        for name, estimate in found.stages.items()
    }
    seconds = sum(max(stages[name].seconds for name in wave) for wave in placement.waves)
    cost = None if price_per_hour is None else price_per_hour * seconds / 3600
    return Duration(stages, seconds, cost)


def _stage(
    stage: TrainedStage, step_seconds: float, rows: int | None, placement: Placement, name: str
) -> StageDuration:
    asked = placement.requests[name]
    gpus = sum(request.count * request.gpus for request in asked)
    devices = gpus or sum(request.count * request.cpus for request in asked)
    steps = stage.train.total_steps(ASSUMED_ROWS if rows is None else rows)
    return StageDuration(steps, rows, steps * step_seconds, devices)
