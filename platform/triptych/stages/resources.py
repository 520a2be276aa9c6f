"""What a stage asks of the cluster. Drivers and controllers ask for nothing."""

from triptych.cluster.ray import Bundle
from triptych.recipe import PpoStage, Stage


def bundles(name: str, stage: Stage) -> list[Bundle]:
    """The bundles that a stage holds while it runs."""
    workers = stage.workers if isinstance(stage, PpoStage) else stage.train.workers
    found = [Bundle(f"stages.{name} workers", workers.count, workers.cpus, workers.gpus)]
    if isinstance(stage, PpoStage):
        rollout = stage.rollout
        found.append(Bundle(f"stages.{name}.rollout engines", rollout.engines, rollout.cpus, rollout.gpus))
    return found
