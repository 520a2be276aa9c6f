"""The numbers that trials of a stage report, any of which may be an objective."""

from triptych.recipe import TrainedStage

COSTS = ("peak_memory_bytes", "step_seconds", "tokens_per_second")
"""Costs of steps on the devices that they ran on."""


def reported_metrics(stage: TrainedStage) -> tuple[str, ...]:
    """Held-out metrics of a stage with held-out rows, training's own, and costs."""
    heldout = stage.reports() if stage.data.heldout else ()
    return (*(f"heldout_{name}" for name in heldout), "loss", *COSTS)
