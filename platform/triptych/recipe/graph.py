"""The graph of stages: who waits for whom."""

import re
from collections.abc import Collection

from triptych.recipe.errors import Problem, RecipeError
from triptych.recipe.recipe import Recipe
from triptych.recipe.rules import Fault, rule_faults
from triptych.recipe.spec import Path, did_you_mean, dotted
from triptych.recipe.stages import PpoStage

_VERSION = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?@[1-9][0-9]*")


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
    found = [
        fault
        for name, stage in recipe.stages.items()
        for fault in (
            *((_ppo_faults(recipe, name, stage)) if isinstance(stage, PpoStage) else ()),
            *(
                _unknown(recipe, name, ("needs", i), ref)
                for i, ref in enumerate(stage.needs)
                if ref not in recipe.stages
            ),
        )
    ]
    return found or _cycle(recipe) or rule_faults(recipe)


def _ppo_faults(recipe: Recipe, name: str, stage: PpoStage) -> list[Fault]:
    found = []
    for field, ref, kind in (("policy", stage.policy, "sft"), ("reward", stage.reward, "reward")):
        path: Path = ("stages", name, field)
        named = recipe.stages.get(ref)
        if "@" in ref:
            if not _VERSION.fullmatch(ref):
                found.append(
                    Fault(path, f"`{ref}` is no adapter version; allowed: a name, `@` and a number, as `name@3`")
                )
        elif named is None:
            found.append(_unknown(recipe, name, (field,), ref, kind))
        elif named.kind != kind:
            message = f"`{ref}` is a stage of kind {named.kind}; allowed: {_candidates(recipe, name, kind)}"
            found.append(Fault(path, message))
    return found


def _unknown(recipe: Recipe, name: str, field: Path, ref: str, kind: str | None = None) -> Fault:
    near = did_you_mean(ref, [other for other in recipe.stages if other != name])
    return Fault(("stages", name, *field), f"no stage `{ref}`{near}; allowed: {_candidates(recipe, name, kind)}")


def _candidates(recipe: Recipe, name: str, kind: str | None) -> str:
    """The stages that a reference of stage `name` may name."""
    others = [other for other, stage in recipe.stages.items() if other != name and kind in (None, stage.kind)]
    words = ", ".join(others) or (f"a stage of kind {kind}" if kind else "none: there is no other stage")
    return words if kind is None else f"{words}, or an adapter version as `name@3`"


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
    fields: list[Path] = [("needs", i) for i, ref in enumerate(stage.needs) if ref == trail[1]]
    if isinstance(stage, PpoStage):
        fields = [(f,) for f in ("policy", "reward") if getattr(stage, f) == trail[1]] + fields
    return [Fault(("stages", trail[0], *fields[0]), f"stages wait for each other: {' -> '.join(trail)}")]
