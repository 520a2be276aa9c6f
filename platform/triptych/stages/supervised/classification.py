"""Classification: texts -> an adapter and a linear head that names their class, read at the end token."""

from typing import Any

import torch

from triptych.data.batches import pad_right
from triptych.forward.roles import RoleModel
from triptych.recipe import CLASSIFIER
from triptych.recipe.kinds import Classification
from triptych.registry import AdapterVersion
from triptych.stages.context import StageContext
from triptych.stages.supervised.heads import label, learn_labels
from triptych.stages.supervised.training import open_rows
from triptych.train.batch import Batch
from triptych.train.stepping import TrainingSteps
from triptych.train.tasks.classification import TextClassification


def run(ctx: StageContext[Classification]) -> AdapterVersion:
    """Texts -> tables -> training -> registered classifier. Goes on from where an earlier call stopped."""
    return label(ctx, learn)


def _batch(rows: list[dict[str, Any]], pad: int) -> Batch:
    """ids, mask [B, T] and label [B]."""
    ids, mask = pad_right([row["input_ids"] for row in rows], pad)
    return {"ids": ids, "mask": mask, "label": torch.tensor([row["label"] for row in rows])}


def learn(ctx: StageContext[Classification], model: RoleModel, role: str = CLASSIFIER) -> TrainingSteps[None]:
    """On every worker."""
    yield from learn_labels(ctx, model, TextClassification(role, ctx.stage.labels), open_rows(ctx, _batch))
