"""Fields of recipes and serve configs without a line of documentation."""

import importlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from counts.source import Count, Offender

ROOTS = (("triptych.recipe", "Recipe"), ("triptych.recipe.serve", "ServeConfig"))


def field_count(checkout: Path) -> Count:
    """Fields of every model that a recipe or a serve config can hold, without a description.

    A description is the string below the field, or `Field(description=...)`. Tags, whose `Literal` allows one value
    (`kind: Literal["sft"]`), say nothing that the class does not say, and do not count.
    """
    if (source := str(checkout / "platform")) not in sys.path:
        sys.path.insert(0, source)
    models = models_of(checkout)
    fields = [(model, name, field) for model in models for name, field in _own_fields(model) if not _is_tag(field)]
    bare = [_offender(checkout, model, name) for model, name, field in fields if not field.description]
    return Count(
        "fields",
        "recipe fields without documentation",
        len(bare),
        sorted(bare),
        f"of {len(fields)} in {len(models)} models",
    )


def models_of(checkout: Path) -> list[type]:
    """Every model that the roots reach, each once, with the bases that declare their fields."""
    seen: list[type] = []
    for module, name in ROOTS:
        root = getattr(importlib.import_module(module), name)
        if checkout not in Path(inspect.getfile(root)).parents:
            raise SystemExit(f"{module} was imported from {inspect.getfile(root)}, not from {checkout}")
        _reach(root, seen)
    return seen


def _reach(model: type, seen: list[type]) -> None:
    if model in seen:
        return
    seen.append(model)
    for base in model.__bases__:
        if hasattr(base, "model_fields") and base.__module__.startswith("triptych"):
            _reach(base, seen)
    for field in model.model_fields.values():  # type: ignore[attr-defined]
        for part in (part for place in (field.annotation, *field.metadata) for part in _parts(place)):
            if inspect.isclass(part) and hasattr(part, "model_fields"):
                _reach(part, seen)


def _parts(annotation: Any) -> Iterator[Any]:
    """An annotation and all that it is put together from, the members of a table in `Annotated` included."""
    yield annotation
    for part in get_args(annotation) if get_origin(annotation) is not Literal else ():
        yield from _parts(part)
    tables = vars(annotation).values() if hasattr(annotation, "__dict__") and is_dataclass(annotation) else ()
    for table in tables:
        yield from table.values() if isinstance(table, Mapping) else ()


def _own_fields(model: Any) -> Iterator[tuple[str, Any]]:
    """Fields that this class declares, not its bases."""
    for name, field in model.model_fields.items():
        if name in inspect.get_annotations(model):
            yield name, field


def _is_tag(field: Any) -> bool:
    return get_origin(field.annotation) is Literal and len(get_args(field.annotation)) == 1


def _offender(checkout: Path, model: type, name: str) -> Offender:
    """The line of a field, found in its class's source."""
    lines, first = inspect.getsourcelines(model)
    places = (number for number, line in enumerate(lines, first) if line.strip().startswith(f"{name}:"))
    return Offender(
        str(Path(inspect.getfile(model)).relative_to(checkout)), next(places, first), f"{model.__name__}.{name}"
    )
