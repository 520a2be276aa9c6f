"""Refusal of stages that their base cannot train, before anything starts: on the base without its weights."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from triptych.errors import UserError
from triptych.models.sizes import FAMILIES, has_known_sizes, model_sizes, read_config
from triptych.recipe import Method, Model, Recipe, RoleSpec
from triptych.recipe.method import Full, parts_of
from triptych.recipe.refusals import is_lora

_KNOWN: dict[tuple[Any, ...], str | None] = {}
"""Refusals of roles by what they and their base are: a sweep asks of many points that have the same."""


def check_base(recipe: Recipe, names: Iterable[str]) -> None:
    """Refuse stages whose base, or a method on it, their workers would refuse.

    Needs config.json alone, and for a member of the Llama family with LoRA or full training no more than a look at it.

    Raises:
        UserError: the model is not causal, or computes what is not computed here, or has no place for a method.
    """
    model = recipe.model
    settings = read_config(model)
    plain = settings.get("model_type") in FAMILIES and settings.get("is_causal", True)
    roles = [role for name in names if name in recipe.stages for role in recipe.stages[name].roles(recipe.stages)]
    odd = [role for role in roles if not (plain and _is_plain(role.method))]
    if not odd:
        return
    if not has_known_sizes(model):
        if model.trust_remote_code:
            return  # known once its code has run
        model_sizes(model)
    for role in odd:
        key = (repr(settings), model.dtype, model.quantization, repr((role.method, role.head, role.copies)))
        if key not in _KNOWN:
            _KNOWN[key] = _refusal(model, role)
        if (reason := _KNOWN[key]) is not None:
            raise UserError(reason)


def _is_plain(method: Method) -> bool:
    return is_lora(method) or all(isinstance(part, Full) for part in parts_of(method))


def _refusal(model: Model, role: RoleSpec) -> str | None:
    """The reason why a role cannot be put on a base; None if it can, or if that is not seen without numbers."""
    try:
        with _unless_numbers_decide():
            _attach(model, role)
    except UserError as error:
        return str(error)
    return None


def _attach(model: Model, role: RoleSpec) -> None:
    """Do on fake tensors what a worker does before its first step, and a pass."""
    import torch  # a base that needs no look needs none of these

    from triptych.forward.mixing import padded_because, refused_by_layers
    from triptych.forward.roles import WITH_PREFIX, RoleModel
    from triptych.measure.dry_run import add_role, random_base
    from triptych.measure.fake_memory import LiveMemory, converting
    from triptych.methods.prefix import keys_and_values
    from triptych.models.families import tried_families

    with converting(), LiveMemory(), torch.random.fork_rng(devices=[]):
        base = random_base(model if model.quantization == "int8" else model.model_copy(update={"quantization": None}))
        base.set_experts_implementation("batched_mm")  # whose shapes do not depend on numbers
        # Some families cannot be looked at without numbers: what the table found of theirs stands.
        tried = tried_families().get(base.config.model_type)
        packed, reason = False, padded_because(base) or (tried.padded_because if tried else None)
        with _unless_numbers_decide():
            reason = reason or refused_by_layers(base)
            packed = model.packing and reason is None
        on_base = RoleModel(base, getattr(torch, model.dtype), packing=packed)
        on_base.padded_because = reason
        on_base.check_prefix(role.method)
        if any(isinstance(part, WITH_PREFIX) for part in parts_of(role.method)):
            keys_and_values(base, [0])  # which some families do not give without numbers
            return
        add_role(on_base, role)
        ids = torch.tensor([[1, 2, 3, 4], [1, 2, 5, 0]])
        with _unless_numbers_decide(), torch.no_grad(), on_base.use(role.name):
            on_base.hidden(ids, (ids > 0).long())


@contextmanager
def _unless_numbers_decide() -> Iterator[None]:
    """Context manager for what some families cannot do on tensors without numbers, which says nothing of them."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception:  # noqa: BLE001 - torch and the code of a family may raise anything
        return
    finally:
        log.setLevel(before)
