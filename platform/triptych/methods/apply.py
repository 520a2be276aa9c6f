"""Attaching a method to a model, and exporting it; each part of a hybrid under its name."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from triptych.methods.table import METHODS
from triptych.recipe.method import Method, parts_of

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

    from triptych.methods.base import Attachment, Export


def apply_method(model: "PreTrainedModel", method: Method, role: str) -> "dict[str, Attachment]":
    """Add a method's parameters, or those of each part of a hybrid, to a model: name -> attachment."""
    parts = parts_of(method)
    # Those that wrap layers go first: what stands beside a layer must see what it gives in the end.
    in_order = sorted(parts, key=lambda part: getattr(part, "family", None) != "matrix")
    found = {part.name: METHODS[part.name].attach(model, part, role) for part in in_order}
    return {part.name: found[part.name] for part in parts}


def export_method(method: Method, state: "Mapping[str, Tensor]") -> "dict[str, Export]":
    """Contents of the files of a method, or of each part of a hybrid: name -> export."""
    parts = parts_of(method)
    return {
        part.name: METHODS[part.name].export(part, without_prefix(state, f"{part.name}.") if len(parts) > 1 else state)
        for part in parts
    }


def without_prefix(named: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with `prefix`, which is taken off."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
