"""YAML in, a checked model out, and back."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from triptych.recipe import document as documents
from triptych.recipe.auto import name_auto
from triptych.recipe.document import Document
from triptych.recipe.errors import Problem, RecipeError
from triptych.recipe.graph import faults
from triptych.recipe.overrides import Override, apply
from triptych.recipe.recipe import Recipe
from triptych.recipe.spec import Path, Spec, did_you_mean, dotted
from triptych.recipe.upgrade import MOVED, is_old, old_path, upgraded

Model = TypeVar("Model", bound=BaseModel)


def load_recipe(path: str | FilePath, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a YAML file with `a.b=c` overrides, its graph of stages checked.

    RecipeError: all that is wrong, a line each, with file, line, field and what is allowed.
    """
    from triptych.recipe.space import space_faults  # it makes recipes of its own

    recipe, source = _recipe(documents.read(FilePath(path)), overrides)
    found = list(space_faults(recipe, recipe.sweep)) if recipe.sweep else []
    if found:
        raise RecipeError(*(source.problem(fault.path, fault.message) for fault in found))
    return recipe


def load_recipe_text(text: str, file: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe of a text that `dump_recipe` wrote; `file`: where it lies, for errors."""
    root, data = documents.parse(text, file)
    assert root is not None
    return _recipe(Document(file, data, root), overrides)[0]


def recipe_with(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """A recipe with further overrides. RecipeError: as `load_recipe`, the lines being those of the resolved recipe."""
    return load_recipe_text(dump_recipe(recipe), recipe.name, overrides)


def load_yaml(path: str | FilePath, model: type[Model], overrides: Sequence[str] = ()) -> Model:
    """Any closed model out of a YAML file; errors as `load_recipe`."""
    return _load(documents.read(FilePath(path)), model, overrides)[0]


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe, every default written out, as YAML that loads back to an equal recipe.

    What a stage inherits is left out: it follows what it is inherited from.
    """
    data = recipe.model_dump(mode="json")
    for name, stage in recipe.stages.items():
        for field in stage.inherited:
            del data["stages"][name][field]
    return documents.write(data)


class _Source:
    """Origin of each value: a line of the file, or an override."""

    def __init__(self, document: Document, overrides: list[Override], old: frozenset[str]) -> None:
        self.document = document
        self.overrides = overrides
        self.old = old
        """Names of stages that the file writes in the form of before."""

    def problem(self, path: Path, message: str) -> Problem:
        """A problem at `path`, located, under the names that the file has."""
        written = self._written(path)
        line: int | str = self.document.line(written)
        for override in self.overrides:
            if path[: len(override.path)] == override.path:
                line = override.text
        below = [o.text for o in self.overrides if o.path[: len(path)] == path and len(o.path) > len(path)]
        if below and path:
            message += f" (with {' '.join(below)})"
        return Problem(self.document.file, line, dotted(written), message)

    def _written(self, path: Path) -> Path:
        if len(path) > 2 and path[0] == "stages" and path[1] in self.old:
            return (*path[:2], *old_path(path[2:]))
        return path


def _recipe(document: Document, overrides: Sequence[str]) -> tuple[Recipe, _Source]:
    """A recipe whose graph of stages is checked."""
    recipe, source = _load(document, Recipe, overrides)
    problems = [source.problem(fault.path, fault.message) for fault in faults(recipe)]
    if problems:
        raise RecipeError(*problems)
    return recipe, source


def _load(document: Document, model: type[Model], overrides: Sequence[str]) -> tuple[Model, _Source]:
    document, old = _of_today(document) if model is Recipe else (document, frozenset())
    source = _Source(document, apply(document, model, overrides, old), old)
    data = name_auto(document.data) if model is Recipe else document.data
    try:
        # Strict as JSON: a list becomes a tuple and 1 a float, but no text a number and no number a truth value.
        return model.model_validate_json(json.dumps(data), strict=True), source
    except ValidationError as error:
        faults = [_explain(model, detail) for detail in error.errors(include_url=False)]
    problems = [source.problem(fault.path, fault.message) for fault in _one_a_union(faults)]
    raise RecipeError(*sorted(problems, key=lambda p: p.line if isinstance(p.line, int) else sys.maxsize))


def _of_today(document: Document) -> tuple[Document, frozenset[str]]:
    """The document with stages of the form before in today's form, and the names of those stages."""
    stages = document.data.get("stages")
    old = frozenset(name for name, stage in stages.items() if is_old(stage)) if isinstance(stages, dict) else ()
    try:
        return replace(document, data=upgraded(document.data)), frozenset(old)
    except ValueError as error:
        raise RecipeError(Problem(document.file, document.line(("stages",)), "", str(error))) from None


@dataclass(frozen=True)
class _Explained:
    """One pydantic error in our words."""

    path: Path
    message: str
    union: Path | None
    """The place of the plain union on its path, if any."""


def _one_a_union(faults: list[_Explained]) -> list[_Explained]:
    """Pydantic reports every member of a union; what went deepest was meant, and equal reports are one."""
    deeper = {fault.union for fault in faults if fault.union is not None and len(fault.path) > len(fault.union)}
    kept = [fault for fault in faults if fault.path != fault.union or fault.union not in deeper]
    return list({(fault.path, fault.message): fault for fault in kept}.values())


def _explain(model: type[BaseModel], detail: ErrorDetails) -> _Explained:
    steps = detail["loc"]
    if detail["type"] == "extra_forbidden":
        spec, path, union = _place(model, steps[:-1])
        known = spec.keys()
        moved = (
            f"; it stands in `{dotted(MOVED[steps[-1:]])}` now" if "rewards" in known and steps[-1:] in MOVED else ""
        )
        near = moved or did_you_mean(steps[-1], known)
        return _Explained((*path, steps[-1]), f"unknown key{near}; allowed: {', '.join(known)}", union)
    if steps and steps[-1] == "[key]":
        spec, path, union = _place(model, steps[:-2])
        message = f"cannot be called {_shown(steps[-2])}; allowed: {spec.key().describe()}"
        return _Explained((*path, steps[-2]), message, union)
    spec, path, union = _place(model, steps)
    if detail["type"].startswith("union_tag") and spec.discriminator is not None:
        return _Explained((*path, spec.discriminator), _wrong_tag(spec, detail), union)
    return _Explained(path, _wrong_value(spec, detail), union)


def _place(model: type[BaseModel], steps: Path) -> tuple[Spec, Path, Path | None]:
    """The place that pydantic's location leads to, its path without the names of union members, and the union on it."""
    spec = Spec(model)
    path: Path = ()
    union: Path | None = None
    for i, step in enumerate(steps):
        if len(spec.members()) == 1:
            spec, path = spec.child(step), (*path, step)
        elif spec.discriminator is not None:
            spec = spec.member(step)
        else:
            union = path
            if i + 1 < len(steps):
                spec = spec.member(step)
    return spec, path, union


def _wrong_tag(spec: Spec, detail: ErrorDetails) -> str:
    allowed = sorted(spec.tags())
    if detail["type"] == "union_tag_not_found":
        return f"missing; allowed: {', '.join(allowed)}"
    tag = detail["ctx"]["tag"]
    return f"cannot be {_shown(tag)}{did_you_mean(tag, allowed)}; allowed: {', '.join(allowed)}"


def _wrong_value(spec: Spec, detail: ErrorDetails) -> str:
    if detail["type"] == "missing":
        return f"missing; allowed: {spec.describe()}"
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    value = detail["input"]
    near = did_you_mean(value, spec.options()) if isinstance(value, str) else ""
    finite = ", finite" if detail["type"] == "finite_number" else ""
    return f"cannot be {_shown(value)}{near}; allowed: {spec.describe()}{finite}"


def _shown(value: object, most: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most else text[:most] + "..."
