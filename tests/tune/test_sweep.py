"""A whole sweep on a cluster: its points are trained, some are stopped early, and nothing is left behind."""

import time
from collections.abc import Callable

import pytest
from ray.util import placement_group_table
from ray.util.state import list_actors

from triptych import storage
from triptych.observe.progress import Progress
from triptych.observe.report.sweep import render_sweep
from triptych.recipe import Recipe
from triptych.tune.sweep import run_sweep

pytestmark = pytest.mark.slow

Make = Callable[..., Recipe]
RAYS_OWN = ("_Board", "PlacementGroupCleaner", "_AutoscalingCoordinatorActor")


def left_behind() -> list[str]:
    """Actors of sweeps and placement groups that are still there; those that Ray keeps for itself ask for nothing."""
    groups = [key for key, group in placement_group_table().items() if group["state"] != "REMOVED"]
    actors = [actor.class_name for actor in list_actors(filters=[("state", "=", "ALIVE")])]
    return [*groups, *(name for name in actors if name not in RAYS_OWN)]


def soon(condition: Callable[[], bool], seconds: float, what: Callable[[], object]) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.2)


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_trains_its_points_and_leaves_nothing_behind(make_recipe: Make) -> None:
    recipe = make_recipe(scheduler="asha", asha={"reduction": 2}, budget={"trials": 3})
    found = run_sweep(recipe, Progress.start())
    assert {trial.status for trial in found.trials} == {"done", "stopped"}
    assert found.best is not None
    assert not storage.exists(storage.join(found.url, "tune"))
    assert "<svg" in render_sweep(found, {})

    soon(lambda: not left_behind(), 60, left_behind)
