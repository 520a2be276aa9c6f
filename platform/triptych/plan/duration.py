"""Duration and cost of a recipe."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from triptych.plan.estimate import Estimate
from triptych.plan.placement import Placement
from triptych.plan.speed import Speed
from triptych.recipe import Recipe, StageBase

ASSUMED_ROWS = 1000
"""Assumed number of rows of a source that cannot be counted."""


@dataclass(frozen=True)
class StageDuration:
    """Duration of a stage's training; loading, evaluation and saving come on top."""

    steps: int
    rows: int | None
    """Rows of the training source; None: unknown, and `ASSUMED_ROWS` are taken where steps depend on them."""
    seconds: float
    devices: float
    """Number of GPUs, or else CPUs, in use meanwhile."""
    at_least: str | None = None
    """Reason why it may take longer, as a sentence; None: nothing of that kind is known."""

    @property
    def device_hours(self) -> float:
        """Hours of one device, over all devices in use."""
        return self.seconds * self.devices / 3600


@dataclass(frozen=True)
class Duration:
    """Duration of a recipe, or of its requested stages."""

    stages: Mapping[str, StageDuration]
    seconds: float
    """Seconds between the first stage's begin and the last one's end."""
    cost: float | None
    """Cost at the machine's price per hour; None without a price."""

    @property
    def device_hours(self) -> float:
        """Device hours of all stages."""
        return sum(stage.device_hours for stage in self.stages.values())

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        stages = {name: asdict(stage) | {"device_hours": stage.device_hours} for name, stage in self.stages.items()}
        return {"stages": stages, "seconds": self.seconds, "device_hours": self.device_hours, "cost": self.cost}


def duration(
    recipe: Recipe, found: Estimate, placement: Placement, rows: Mapping[str, int | None], price_per_hour: float | None
) -> Duration:
    """Duration of an estimated recipe on its placement.

    Args:
        rows: number of rows of each stage's training source; None where it is unknown.
        price_per_hour: price of the whole machine.
    """
    stages = {
        name: _stage(recipe.stages[name], estimate.speed, rows.get(name), placement, name)
        for name, estimate in found.stages.items()
    }
    seconds = sum(
        max((stages[name].seconds for name in wave if name in stages), default=0.0) for wave in placement.waves
    )
    cost = None if price_per_hour is None else price_per_hour * seconds / 3600
    return Duration(stages, seconds, cost)


def _stage(stage: StageBase, speed: Speed, rows: int | None, placement: Placement, name: str) -> StageDuration:
    asked = placement.requests[name]
    gpus = sum(request.count * request.gpus for request in asked)
    devices = gpus or sum(request.count * request.cpus for request in asked)
    steps = stage.steps(ASSUMED_ROWS if rows is None else rows)
    return StageDuration(steps, rows, steps * speed.step_seconds, devices, speed.at_least)
