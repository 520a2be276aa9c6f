"""The models of an evaluation: the base, adapters on it, and whole models."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triptych import storage
from triptych.errors import UserError
from triptych.models.adapter import Adapter
from triptych.models.peft_files import FACTS
from triptych.recipe import Evaluation
from triptych.recipe.evaluation import BASE
from triptych.registry import AdapterVersion
from triptych.stages.artifact import check_same_base, registered
from triptych.stages.context import StageContext
from triptych.stages.reward_models import reward_model
from triptych.stages.stored_adapter import StoredAdapter


@dataclass(frozen=True)
class MeasuredModel:
    """A model that is measured."""

    ref: str
    """As the recipe names it."""
    version: AdapterVersion | None = None
    """None: the base."""
    stored: StoredAdapter | None = None
    """None: the base, or a whole model."""
    folder: Path | None = None
    """Hugging Face folder of a whole model."""

    @property
    def adapter(self) -> Adapter | None:
        """None: the base, or a whole model."""
        return None if self.stored is None else self.stored.adapter


def measured_models(ctx: StageContext[Evaluation]) -> list[MeasuredModel]:
    """The stage's models, in its order.

    Raises:
        UserError: one is of another kind than its sets measure, or sits on another base.
    """
    return [_measured(ctx, ref, f"stages.{ctx.name}.models.{i}") for i, ref in enumerate(ctx.stage.models)]


def judge(ctx: StageContext[Evaluation], ref: str) -> MeasuredModel:
    """A reward model that scores answers. UserError: it is none, sits on another base, or would be rounded."""
    found = reward_model(ctx, ref)
    if isinstance(found, StoredAdapter):
        return MeasuredModel(ref, found.version, found)
    return MeasuredModel(ref, found.version, folder=found.folder)


def _measured(ctx: StageContext[Evaluation], ref: str, field: str) -> MeasuredModel:
    if ref == BASE:
        return MeasuredModel(ref)
    version = _verified(ctx, ref)
    folder = storage.local_copy(version.url)
    allowed = ("classifier",) if ctx.stage.reads_classes else ("policy", "model")
    if version.kind not in allowed:
        raise UserError(f"{field}: {version.ref} is of kind {version.kind}; allowed: {' or '.join(allowed)}")
    if version.kind == "model":
        return MeasuredModel(ref, version, folder=folder)
    if ctx.stage.reads_classes and (kind := _stage_kind(folder)) not in (None, "classification"):
        raise UserError(f"{field}: {version.ref} was trained by a stage of kind {kind}; allowed: classification")
    return MeasuredModel(ref, version, StoredAdapter.read(version, version.kind))


def _verified(ctx: StageContext[Evaluation], ref: str) -> AdapterVersion:
    version = registered(ctx, ref)
    check_same_base(version, ctx.base_fingerprint, ctx.recipe.model.base)
    storage.verify(version.url)
    return version


def _stage_kind(folder: Path) -> Any:
    return json.loads((folder / FACTS).read_text(encoding="utf-8")).get("stage_kind")
