"""Data that passes between a sweep and the executor of its trials."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych.data.files import absolute
from triptych.recipe import Asha, Recipe, Storage, Values, with_values


@dataclass(frozen=True)
class Trial:
    """One trial as an executor is given it. Plain data."""

    name: str
    """Folder of its run within the sweep's folder, and its label in progress."""
    recipe: Recipe
    """Complete recipe of the swept stage alone; run, registry and artifacts lie within the sweep's folder."""
    stage: str
    forked_at: int | None = None
    """Step of the copied checkpoint of another trial that it begins from; None if it begins from the base."""
    reported: int = 0
    """Last step on the sweep's record; later evaluations are reported again."""
    device_seconds: float = 0.0
    """Device-seconds spent in earlier sessions."""
    tokens: int = 0
    """Tokens trained on before this run began."""
    asha: Asha | None = None
    """ASHA, at whose rungs alone it is evaluated; None if its recipe says when to evaluate."""


@dataclass(frozen=True)
class Report:
    """One evaluation of a trial; its row and checkpoint are committed."""

    step: int
    metrics: Mapping[str, float]
    """Held-out metrics and what steps cost, by the names of the metrics log."""
    device_seconds: float
    """Device-seconds spent by the trial so far."""
    tokens: int
    """Tokens trained on by the trial so far."""
    final: bool = False
    """The stage is done: its artifact and summary lie in the run's folder."""


@dataclass(frozen=True)
class Assignment:
    """State of a trial when it is given to Tune, as whose config it travels; `trial` makes a Trial of it."""

    number: int
    values: dict[str, Any]
    run: str
    forked_at: int | None = None
    reported: int = 0
    device_seconds: float = 0.0
    tokens: int = 0

    def trial(self, recipe: Recipe, folder: str, parents: Values) -> Trial:
        """The trial, of a sweep's recipe, in the sweep's folder; `parents`: keys and versions that it starts from."""
        assert recipe.sweep is not None
        own = trial_recipe(recipe, {**self.values, **parents}, self.run, folder)
        stage = own.trained[recipe.sweep.stage]
        at_rungs = recipe.sweep.scheduler == "asha" and stage.train.evaluate_every is None
        return Trial(
            name=self.run,
            recipe=own,
            stage=recipe.sweep.stage,
            forked_at=self.forked_at,
            reported=self.reported,
            device_seconds=self.device_seconds,
            tokens=self.tokens,
            asha=recipe.sweep.asha if at_rungs else None,
        )


def trial_recipe(recipe: Recipe, values: Values, name: str, folder: str) -> Recipe:
    """The recipe of the swept stage alone with a point's values, as run `name` in `folder`.

    Raises:
        RecipeError: the stage cannot have these values.
    """
    assert recipe.sweep is not None
    with_point = with_values(recipe, values)
    only = recipe.sweep.stage
    # Absolute paths: a trial's driver has another working directory.
    placed = with_point.trained[only].with_sources(absolute)
    stage = placed.model_copy(update={"needs": (), "register_as": None})
    model = with_point.model
    if Path(model.base).expanduser().is_dir():
        model = model.model_copy(update={"base": str(Path(model.base).expanduser().resolve())})
    return with_point.model_copy(
        update={"name": name, "storage": Storage(runs=folder), "stages": {only: stage}, "model": model}
    )


def plain_metrics(row: Mapping[str, Any]) -> dict[str, float]:
    """Finite numbers of a row of the metrics log that a sweep keeps: not step, tokens and the seconds of parts."""
    return {
        key: float(value)
        for key, value in row.items()
        if isinstance(value, int | float)
        and math.isfinite(value)
        and key not in ("step", "tokens")
        and not key.startswith("seconds_")
    }


def worst(mode: str) -> float:
    """Score of a trial whose objective is not a number: infinitely bad."""
    return math.inf if mode == "min" else -math.inf
