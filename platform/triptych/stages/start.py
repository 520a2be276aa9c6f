"""Going on from an adapter or a whole model: read on the driver, given to the workers, and put on their model."""

from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.models.heads import ClassHead, ScalarHead
from triptych.recipe import SupervisedStage
from triptych.recipe.spec import dotted
from triptych.stages.artifact import check_same_base, registered
from triptych.stages.context import StageContext
from triptych.stages.stored_adapter import StoredAdapter
from triptych.stages.versions import START, check_quantization, read_known
from triptych.stages.whole_model import WholeModel

StageT = TypeVar("StageT", bound=SupervisedStage)


def going_on(ctx: StageContext[StageT]) -> StageContext[StageT]:
    """The stage with the adapter or the whole model of its `from`, and with its method where the recipe names none.

    Raises:
        UserError: it sits on another base, or the stage cannot go on from it.
    """
    if ctx.stage.start is None:
        return ctx
    version = registered(ctx, ctx.stage.start)
    check_same_base(version, ctx.base_fingerprint, ctx.recipe.model.base)
    stored, known = read_known(version)
    if fault := ctx.stage.refusal(START, known):
        raise UserError(f"{dotted(('stages', ctx.name, *fault.path))}: {fault.message}")
    check_quantization(version, ctx.recipe.model.quantization)
    stage: Any = ctx.stage.inheriting(known)
    return replace(ctx, stage=stage, start=stored)


def start_folder(ctx: StageContext[Any]) -> Path | None:
    """Hugging Face folder of the whole model that the stage goes on from; None: it stands on the base."""
    return ctx.start.folder if isinstance(ctx.start, WholeModel) else None


def add_role(
    ctx: StageContext[Any], model: RoleModel, role: str, head: ScalarHead | ClassHead | None = None, member: int = 0
) -> None:
    """Put the stage's method on the model, new or as the adapter that it goes on from has it, and so its head.

    `member`: which of an ensemble it is; a single adapter is the start of all.
    """
    if not isinstance(ctx.start, StoredAdapter):  # new, or the model itself is what it goes on from
        model.add(role, ctx.stage.method, trainable=True, head=head)
        return
    members = (ctx.start.adapter, *ctx.start.adapter.others)
    adapter = members[member % len(members)]
    if head is not None and adapter.head is not None and ctx.stage.keeps_head:
        head.load(**adapter.head)
    model.add(role, ctx.stage.method, trainable=True, weights=adapter.to_go_on[1], head=head)
