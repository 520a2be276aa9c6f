"""Trained weights of a role, as the adapter that is saved of them."""

from collections.abc import Mapping

from torch import Tensor

from triptych.forward.roles import HEAD
from triptych.methods.apply import export_method
from triptych.models.adapter import Adapter
from triptych.recipe import Method
from triptych.recipe.method import parts_of


def adapter_of(method: Method, weights: Mapping[str, Tensor], kind: str) -> Adapter:
    """The adapter of a role: tensors in the form of the method's files, and the head apart.

    `weights`: as `Learner.weights` gives them; `kind`: `policy`, `reward_model` or `classifier`.
    """
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(HEAD)}
    head = {name.removeprefix(HEAD): tensor for name, tensor in weights.items() if name.startswith(HEAD)}
    parts = {part.method.name: part for part in export_method(method, own).values()}
    before = {name: f"{name}." if len(parts) > 1 else "" for name in parts}
    exported = tuple(part.method for part in parts.values())
    return Adapter(
        exported if len(parts) > 1 else exported[0],
        {f"{before[name]}{key}": tensor for name, part in parts.items() for key, tensor in part.weights.items()},
        kind,
        {name: part.config for name, part in parts.items() if part.config is not None},
        {name: part.peft for name, part in parts.items() if part.peft is not None},
        head or None,
        state=own if exported != parts_of(method) else None,
        trained=method,
    )
