"""The trainer of a shared base: trials end each in its own way, and the others do not notice."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from triptych import storage
from triptych.errors import UserError
from triptych.observe.progress import Progress
from triptych.recipe import Recipe
from triptych.stages.context import StageContext
from triptych.stages.run import stage_context
from triptych.stages.supervised import sft
from triptych.stages.supervised.training import prepare
from triptych.tune.shared_trainer import SharedTrainer

Make = Callable[..., Recipe]


class Silent(Progress):
    """Nobody is told."""

    def update(self, stage: str, step: int, total: int, metrics: dict[str, float]) -> None:
        """Nothing."""


def trial(recipe: Recipe, name: str) -> StageContext[Any]:
    ctx = stage_context(recipe.model_copy(update={"name": name}), "sft", Silent(None))
    prepare(ctx)
    return ctx


@pytest.mark.slow
def test_trials_end_each_in_its_own_way(make_recipe: Make) -> None:
    whole, dropped, broken = (trial(make_recipe(), name) for name in ("whole", "dropped", "broken"))
    storage.remove(storage.join(broken.folder, "data"))

    async def train() -> list[Any]:
        trainer = SharedTrainer(1, "cpu")
        calls = [asyncio.ensure_future(trainer.train(ctx, sft.learn)) for ctx in (whole, dropped, broken)]
        await asyncio.sleep(0)
        await trainer.drop("dropped")
        await trainer.drop("dropped")
        return await asyncio.gather(*calls, return_exceptions=True)

    ended = asyncio.run(asyncio.wait_for(train(), 120))
    assert ended[:2] == [None, None]
    assert isinstance(ended[2], UserError)
    assert storage.read_manifest(whole.artifact) is not None
    assert storage.read_manifest(dropped.artifact) is None


def test_a_trial_that_was_dropped_goes_on(make_recipe: Make) -> None:
    ctx = trial(make_recipe(), "again")

    async def train() -> None:
        trainer = SharedTrainer(1, "cpu")
        first = asyncio.ensure_future(trainer.train(ctx, sft.learn))
        await asyncio.sleep(0)
        await trainer.drop("again")
        await first
        await trainer.train(ctx, sft.learn)

    asyncio.run(asyncio.wait_for(train(), 120))
    assert storage.read_manifest(ctx.artifact) is not None
