"""Points of a sweep's space: a recipe with some values set, and a space that its recipe cannot take."""

import json
from collections.abc import Iterator
from typing import Any

from triptych.recipe.errors import Fault, RecipeError
from triptych.recipe.load import recipe_with
from triptych.recipe.recipe import Recipe
from triptych.recipe.spec import did_you_mean
from triptych.recipe.sweep import Dimension, Sweep, Values, wanted

_ROOTS = ("model", "seed", "stages")
"""Sections that may differ between trials; the others say where and how all trials run."""


def with_values(recipe: Recipe, values: Values) -> Recipe:
    """The recipe without its sweep, with a point's values. RecipeError: it cannot have them."""
    return recipe_with(recipe.model_copy(update={"sweep": None}), overrides_of(recipe, values))


def overrides_of(recipe: Recipe, values: Values) -> list[str]:
    """A point as `--set` takes it: another method than the recipe's first of all, and with its defaults."""
    texts = []
    for key, value in values.items():
        stage = recipe.stages.get(key.removeprefix("stages.").removesuffix(".method.name"))
        if stage is not None and key.endswith(".method.name"):
            if getattr(stage.own_method, "name", None) != value:
                texts.append(f"{key.removesuffix('.name')}={json.dumps({'name': value})}")
        else:
            texts.append(f"{key}={json.dumps(value)}")
    return sorted(texts, key=lambda text: not text.partition("=")[0].endswith(".method"))


def space_faults(recipe: Recipe, sweep: Sweep) -> Iterator[Fault]:
    """Faults of a sweep's space: keys, values and conditions, each key by itself."""
    if sweep.stage not in recipe.stages:
        near = did_you_mean(sweep.stage, list(recipe.stages))
        yield Fault(("sweep", "stage"), f"no such stage{near}; allowed: {', '.join(recipe.stages)}")
        return
    earlier: dict[str, Dimension] = {}
    for key, dimension in sweep.space.items():
        fault = _condition_fault(key, dimension, earlier) or _value_fault(recipe, sweep, key, dimension)
        if fault:
            yield fault
        earlier[key] = dimension


def _condition_fault(key: str, dimension: Dimension, earlier: dict[str, Dimension]) -> Fault | None:
    for other, value in dimension.when.items():
        path = ("sweep", "space", key, "when", other)
        if other not in earlier:
            known = list(earlier)
            allowed = f"a key of the space above this one{': ' if known else ''}{', '.join(known)}"
            return Fault(path, f"no such key{did_you_mean(other, known)}; allowed: {allowed}")
        choice = earlier[other].choice
        never = [one for one in wanted(value) if choice is None or one not in choice]
        if never:
            can = "a choice" if choice is None else ", ".join(map(json.dumps, choice))
            return Fault(path, f"{other} is never {json.dumps(never[0])}; allowed: {can}")
    return None


def _value_fault(recipe: Recipe, sweep: Sweep, key: str, dimension: Dimension) -> Fault | None:
    path = ("sweep", "space", key)
    if key.partition(".")[0] not in _ROOTS:
        return Fault(path, f"cannot differ between trials; allowed: keys below {', '.join(_ROOTS)}")
    if key.startswith("stages.") and not key.startswith(f"stages.{sweep.stage}."):
        return Fault(path, f"is none of the stage's; allowed: keys below stages.{sweep.stage}, model, seed")
    for value in dimension.edges():
        try:
            with_values(recipe, _context(sweep, dimension) | {key: value})
        except RecipeError as error:
            first = error.problems[0]
            return Fault(
                path, f"{json.dumps(value)}: {f'{first.field}: ' if first.field != key else ''}{first.message}"
            )
    return None


def _context(sweep: Sweep, dimension: Dimension) -> dict[str, Any]:
    """The values under which a key is there at all."""
    values: dict[str, Any] = {}
    for key, value in dimension.when.items():
        values |= _context(sweep, sweep.space[key]) | {key: wanted(value)[0]}
    return values
