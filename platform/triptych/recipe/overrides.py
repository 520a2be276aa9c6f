"""`--set a.b=c`: changes to a recipe from the command line."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from triptych.recipe.document import Document, parse
from triptych.recipe.errors import Problem, RecipeError
from triptych.recipe.spec import Path, Spec, did_you_mean, dotted
from triptych.recipe.upgrade import moved_path


@dataclass(frozen=True)
class Override:
    """One `--set`, applied."""

    text: str
    path: Path


def apply(
    document: Document, model: type[BaseModel], texts: Sequence[str], old: Collection[str] = ()
) -> list[Override]:
    """Write the overrides into the document's data, in order.

    Args:
        old: Names of stages that the file writes in the form of before: overrides may name their fields so.

    Raises:
        RecipeError: unknown paths, values that are not YAML.
    """
    applied: list[Override] = []
    problems: list[Problem] = []
    for text in texts:
        try:
            applied.append(_apply_one(document, model, text, old))
        except RecipeError as error:
            problems.extend(error.problems)
    if problems:
        raise RecipeError(*problems)
    return applied


def _apply_one(document: Document, model: type[BaseModel], text: str, old: Collection[str]) -> Override:
    where, equals, value_text = text.partition("=")
    where = _of_today(where.strip(), old)
    label = f"--set {text}"
    if not equals or not where:
        raise RecipeError(
            Problem(document.file, label, "", "allowed: a dotted path, `=` and a value, such as `seed=1`")
        )
    _, value = parse(value_text, document.file, label)
    spec, rest = Spec(model), where
    data: Any = document.data
    path: Path = ()
    while True:
        try:
            step, rest, spec = _step(spec, data, rest)
        except _UnknownStepError as error:
            raise RecipeError(Problem(document.file, label, dotted((*path, error.step)), str(error))) from None
        path = (*path, step)
        if not rest:
            data[step] = value
            return Override(label, path)
        data = _below(data, step)


def _of_today(where: str, old: Collection[str]) -> str:
    """A dotted path below a stage of the form before, as the path of today."""
    for name in old:
        stage = f"stages.{name}."
        if where.startswith(stage):
            return stage + dotted(moved_path(tuple(where.removeprefix(stage).split("."))))
    return where


def _below(data: Any, step: str | int) -> Any:
    """The container one step down, made where the file leaves it to its defaults."""
    if isinstance(data, dict) and data.get(str(step)) is None:
        data[step] = {}
    return data[step]


class _UnknownStepError(Exception):
    """A step of an override's path that leads nowhere."""

    def __init__(self, step: str, message: str) -> None:
        super().__init__(message)
        self.step = step


def _step(spec: Spec, data: Any, rest: str) -> tuple[str | int, str, Spec]:
    """The next step of a dotted path, what remains of the path, and the place that the step leads to."""
    first, _, after = rest.partition(".")
    if spec.discriminator is not None:
        spec = _chosen(spec, data, first)
    if spec.model is not None or (isinstance(data, dict) and spec.keys()):
        known = spec.keys()
        if first not in known:
            raise _UnknownStepError(first, f"unknown key{did_you_mean(first, known)}; allowed: {', '.join(known)}")
        return first, after, spec.child(first)
    if spec.is_mapping() and isinstance(data, dict):
        # Names may hold dots, so the longest entry that the path starts with is meant.
        known = sorted((k for k in data if rest == k or rest.startswith(k + ".")), key=len)
        if known:
            return known[-1], rest[len(known[-1]) + 1 :], spec.child(known[-1])
        if after:
            raise _UnknownStepError(
                first, f"no such entry{did_you_mean(first, list(data))}; allowed: {', '.join(data)}"
            )
        return first, after, spec.child(first)
    if isinstance(data, list):
        if not first.isdecimal() or int(first) >= len(data):
            raise _UnknownStepError(first, f"no such item; allowed: 0 to {len(data) - 1}")
        return int(first), after, spec.child(int(first))
    raise _UnknownStepError(first, f"nothing can stand below this; allowed here: {spec.describe()}")


def _chosen(spec: Spec, data: Any, step: str) -> Spec:
    """The member of a union that the data chose."""
    assert spec.discriminator is not None
    if isinstance(data, list) and spec.list_tag:
        return spec.listed()
    tag = data.get(spec.discriminator, spec.default_tag) if isinstance(data, dict) else None
    if tag in spec.tags():
        return spec.tags()[tag]
    if step == spec.discriminator:
        return next(iter(spec.tags().values()))
    raise _UnknownStepError(
        step, f"`{spec.discriminator}` must be set first; allowed: {', '.join(sorted(spec.tags()))}"
    )
