"""Reasons why training cannot go on from an adapter or a whole model: its method, its head, its members."""

from collections.abc import Iterator
from typing import Any

from triptych.recipe.errors import Fault
from triptych.recipe.method import Method, names_of, parts_of, trains_base
from triptych.recipe.stage import Known

_OF_TRAINING = frozenset({"lr", "dropout", "encoder_dropout", "robust_drop_layers"})
"""Fields that change how a method is trained, and not what its tensors mean."""
NEW_HEAD = "`head: new`, which keeps the method and draws a head"


def method_refusal(method: Method, known: Known) -> Fault | None:
    """Reason why a stage with this method cannot go on from an adapter."""
    if known.method is None:
        return None
    for own, other in _disagreements(method, known.method):
        allowed = "allowed: the same, or no `method`: it is taken over"
        return Fault(("method",), f"{own}, and `{known.ref}` was trained with {other}; {allowed}")
    return None


def whole_refusal(known: Known) -> Fault | None:
    """Reason why no training goes on from a whole model with a head, which is no adapter."""
    if known.method is None or not trains_base(known.method):
        return None
    message = f"`{known.ref}` is a whole model with a head; allowed: an adapter, or no `from`"
    return Fault(("from",), message)


def whole_start_refusal(method: Method, known: Known) -> Fault | None:
    """Reason why a method cannot go on from a whole model without a head."""
    if trains_base(method):
        return None
    return Fault(
        ("method",),
        f"{names_of(method)} makes an adapter on model.base, and the weights of the whole model `{known.ref}` are "
        "others; allowed: full or freeze, or the folder of that model as model.base",
    )


def members_refusal(members: int, known: Known, *, new_head: bool) -> Fault | None:
    """Reason why so many models cannot go on from an adapter, or from an ensemble; `new_head`: each draws a head."""
    if members == known.members:
        return None
    if known.members == 1 and (new_head or known.kind == "policy"):
        return None
    if known.members == 1:
        message = f"the {members} members would all be `{known.ref}`; allowed: an ensemble, or {NEW_HEAD} for each"
    else:
        message = f"`{known.ref}` is an ensemble of {known.members}, and here is {members}; allowed: as many members"
    return Fault(("from",), message)


def head_refusal(kind: str, output: str, labels: tuple[str, ...], known: Known) -> Fault | None:
    """Reason why a stage of this kind cannot go on with the head of an adapter; a policy has none."""
    if known.kind == "policy":
        return None
    if known.kind != output or known.stage_kind not in (None, kind):
        made = known.stage_kind or known.kind.replace("_", " ")
        return Fault(("from",), f"`{known.ref}` has the head of a {made} stage; allowed: {NEW_HEAD}")
    if known.labels != labels:
        names = ", ".join(known.labels)
        return Fault(("labels",), f"`{known.ref}` names {names}; allowed: the same, in this order, or {NEW_HEAD}")
    return None


def _disagreements(own: Method, other: Method) -> Iterator[tuple[str, str]]:
    """Differences between two methods, in words: of the one, and of the other."""
    if names_of(own) != names_of(other):
        yield names_of(own), names_of(other)
        return
    for one, two in zip(parts_of(own), parts_of(other), strict=True):
        for name in sorted(type(one).model_fields.keys() - _OF_TRAINING):
            mine, its = getattr(one, name), getattr(two, name)
            if _in_any_order(mine) != _in_any_order(its):
                yield f"{name} {_shown(mine)}", _shown(its)


def _in_any_order(value: Any) -> Any:
    return frozenset(value) if isinstance(value, tuple) else value


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
