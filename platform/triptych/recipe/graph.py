"""The graph of stages: who waits for whom."""

import re
from collections.abc import Collection, Iterator

from triptych.recipe.base import NAME_PATTERN
from triptych.recipe.errors import Fault, Problem, RecipeError
from triptych.recipe.recipe import Recipe
from triptych.recipe.rules import rule_faults
from triptych.recipe.spec import Path, did_you_mean, dotted
from triptych.recipe.stage import Output, Reference, StageBase

_VERSION = re.compile(rf"{NAME_PATTERN}@[1-9][0-9]*")


def stage_order(recipe: Recipe) -> list[str]:
    """Every stage after the stages it waits for, else in the recipe's order. RecipeError: `faults`."""
    found = faults(recipe)
    if found:
        raise RecipeError(*(Problem(None, None, dotted(fault.path), fault.message) for fault in found))
    order: list[str] = []
    while len(order) < len(recipe.stages):
        order.append(ready(recipe, order, ())[0])
    return order


def ready(recipe: Recipe, done: Collection[str], running: Collection[str]) -> list[str]:
    """Stages that can start now: not done, not running, all that they wait for done."""
    return [
        name
        for name, stage in recipe.stages.items()
        if name not in done and name not in running and all(parent in done for parent in stage.parents())
    ]


def faults(recipe: Recipe) -> list[Fault]:
    """All that is wrong across fields: references between stages first, then cycles, then what cannot go together."""
    found = [fault for name, stage in recipe.stages.items() for fault in _reference_faults(recipe, name, stage)]
    return found or _cycle(recipe) or rule_faults(recipe)


def _reference_faults(recipe: Recipe, name: str, stage: StageBase) -> Iterator[Fault]:
    for reference in stage.references():
        fault = _reference_fault(recipe, name, reference)
        if fault:
            yield fault
    for number, ref in enumerate(stage.needs):
        if ref not in recipe.stages:
            yield _unknown(recipe, name, ("needs", number), ref, _candidates(recipe, name))


def _reference_fault(recipe: Recipe, name: str, reference: Reference) -> Fault | None:
    path: Path = ("stages", name, *reference.field)
    ref, named = reference.ref, recipe.stages.get(reference.ref)
    allowed = _candidates(recipe, name, reference)
    if "@" in ref and reference.versions:
        fits = _VERSION.fullmatch(ref)
        message = f"`{ref}` is no adapter version; allowed: a name, `@` and a number, as `name@3`"
        return None if fits else Fault(path, message)
    if named is None:
        return _unknown(recipe, name, reference.field, ref, allowed)
    if named.output not in reference.outputs:
        hint = f" ({reference.hint})" if reference.hint else ""
        found = f"`{ref}` is a stage of kind {named.kind}, whose output is {_words(named.output)}"
        return Fault(path, f"{found}; allowed: {allowed}{hint}")
    return None


def _unknown(recipe: Recipe, name: str, field: Path, ref: str, allowed: str) -> Fault:
    near = did_you_mean(ref, [other for other in recipe.stages if other != name])
    return Fault(("stages", name, *field), f"no stage `{ref}`{near}; allowed: {allowed}")


def _candidates(recipe: Recipe, name: str, reference: Reference | None = None) -> str:
    """The stages that a reference of stage `name`, or its `needs`, may name."""
    if reference is None:
        return ", ".join(other for other in recipe.stages if other != name) or "none: there is no other stage"
    fitting = [other for other, stage in recipe.stages.items() if other != name and stage.output in reference.outputs]
    words = ", ".join(fitting) or f"a stage whose output is {_words(reference.outputs[0])}"
    return f"{words}, or an adapter version as `name@3`" if reference.versions else words


def _words(output: Output) -> str:
    if output == "none":
        return "nothing"
    return f"{'an' if output[0] in 'aeiou' else 'a'} {output.replace('_', ' ')}"


def _cycle(recipe: Recipe) -> list[Fault]:
    """The first cycle, told where its first stage in the recipe names the next one."""
    done: list[str] = []
    while started := ready(recipe, done, ()):
        done += started
    left = [name for name in recipe.stages if name not in done]
    if not left:
        return []
    trail = [left[0]]
    while trail.count(trail[-1]) < 2:
        trail.append(next(parent for parent in recipe.stages[trail[-1]].parents() if parent in left))
    trail = trail[trail.index(trail[-1]) :]
    stage = recipe.stages[trail[0]]
    fields: list[Path] = [one.field for one in stage.references() if one.ref == trail[1]]
    fields += [("needs", number) for number, ref in enumerate(stage.needs) if ref == trail[1]]
    return [Fault(("stages", trail[0], *fields[0]), f"stages wait for each other: {' -> '.join(trail)}")]
