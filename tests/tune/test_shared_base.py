"""Trials side by side on one base: what may be so, and that a sweep comes to the same table."""

from collections.abc import Callable
from typing import Any

import pytest
import ray
from ray.util import placement_group_table
from ray.util.state import list_actors

from triptych.errors import UserError
from triptych.observe.progress import Progress
from triptych.plan.machines import Machine, Node
from triptych.recipe import Recipe, with_values
from triptych.tune.executor import OnRayTrain
from triptych.tune.shared_base import executor_for, max_concurrent, reason_not_shared
from triptych.tune.sweep import run_sweep

Make = Callable[..., Recipe]
LR, RANK = "stages.sft.train.optimizer.lr", "stages.sft.method.r"


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("stages.sft.method.name", "full", r"method: full .*allowed: lora"),
        ("stages.sft.method.name", "dora", r"method: dora .*allowed: lora"),
        ("stages.sft.method.dropout", 0.1, r"dropout 0\.1: its masks would depend on the other trials; allowed: 0"),
        ("stages.sft.method.init", "pissa", r"init pissa: allowed: default"),
        ("stages.sft.method.freeze_a", True, r"freeze_a: allowed: false"),
        ("stages.sft.train.workers.count", 2, r"workers: one process .*count 1"),
        ("stages.sft.train.workers.strategy", "fsdp", r"strategy auto or single"),
        ("stages.sft.train.memory.checkpointing", "full", r"differ in stages\.sft\.train\.memory or workers"),
        ("model.quantization", "int8", r"model\.quantization int8: allowed: none"),
        ("model.dtype", "bfloat16", r"differ in `model`"),
    ],
)
def test_what_cannot_share_a_base(make_recipe: Make, key: str, value: Any, reason: str) -> None:
    recipe = make_recipe(shared_base=True)
    other = with_values(recipe, {key: value})
    assert reason_not_shared([recipe, with_values(recipe, {LR: 0.1, RANK: 2})], "sft") is None
    with pytest.raises(UserError, match=rf"sweep\.shared_base: .*{reason}"):
        executor_for(recipe, [recipe, other], Progress(None))


def test_auto_falls_back(make_recipe: Make) -> None:
    recipe = make_recipe(shared_base="auto")
    dropped = with_values(recipe, {"stages.sft.method.dropout": 0.1})
    assert isinstance(executor_for(recipe, [dropped], Progress(None)), OnRayTrain)
    assert isinstance(executor_for(make_recipe(), [recipe], Progress(None)), OnRayTrain)


def test_memory_bounds_the_trials_at_once(make_recipe: Make) -> None:
    recipe = make_recipe()
    roomy, tight = (Machine("one", (Node(2, 0, memory),)) for memory in (64 << 30, 1 << 20))
    assert max_concurrent(recipe, "sft", roomy) == 8
    assert max_concurrent(recipe, "sft", tight) == 1


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_comes_to_the_same_table(make_recipe: Make) -> None:
    recipe = make_recipe(search="grid", space={RANK: {"choice": [2, 4]}}, shared_base=True, concurrency=2)
    shared = run_sweep(recipe, Progress.start())
    assert [(trial.status, trial.step) for trial in shared.trials] == [("done", 6)] * 2
    assert not [key for key, group in placement_group_table().items() if group["state"] != "REMOVED"]
    here = ray.get_runtime_context().gcs_address  # other clusters may run on this machine
    left = [actor.class_name for actor in list_actors(here, filters=[("state", "=", "ALIVE")])]
    assert "SharedTrainer" not in left

    recipe = make_recipe(search="grid", space={RANK: {"choice": [2, 4]}})
    alone = run_sweep(recipe.model_copy(update={"name": "alone"}), Progress.start())
    for one, other in zip(shared.trials, alone.trials, strict=True):
        assert one.values == other.values
        assert one.tokens == other.tokens
        assert [r["step"] for r in one.reports] == [r["step"] for r in other.reports]
        for mine, theirs in zip(one.reports, other.reports, strict=True):
            assert mine["metrics"]["heldout_loss"] == pytest.approx(theirs["metrics"]["heldout_loss"], abs=1e-4)
