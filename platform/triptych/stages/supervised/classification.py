"""Classification: texts -> an adapter and a linear head that names their class, read at the end token."""

from functools import partial
from typing import Any

import pyarrow as pa
import torch

from triptych.data.batches import pad_right
from triptych.data.encode import encode_texts
from triptych.data.rows import DataRow, parse_text
from triptych.data.table import StoredTable
from triptych.forward.roles import RoleModel
from triptych.recipe import CLASSIFIER, Classification
from triptych.registry import AdapterVersion
from triptych.stages.context import StageContext
from triptych.stages.supervised.encoding import TOKENS, Examples
from triptych.stages.supervised.heads import label, learn_labels
from triptych.stages.supervised.training import open_rows
from triptych.train.batch import Batch
from triptych.train.stepping import TrainingSteps
from triptych.train.tasks.classification import TextClassification


def run(ctx: StageContext[Classification]) -> AdapterVersion:
    """Texts -> tables -> training -> registered classifier. Goes on from where an earlier call stopped."""
    return label(ctx, texts(ctx.stage), learn)


def texts(stage: Classification) -> Examples:
    """Texts as tokens, with the index of their class."""
    batch = stage.train.batch
    return Examples(
        kind="texts",
        parse=partial(_parse, labels=stage.labels),
        encode=partial(encode_texts, max_length=batch.max_length, labels=stage.labels, drop=batch.overlength == "drop"),
        schema=pa.schema({"input_ids": TOKENS, "label": pa.int32()}),
        sequences=("input_ids",),
        length=partial(StoredTable.lengths, column="input_ids"),
        batch=_batch,
    )


def _parse(record: dict[str, Any], labels: tuple[str, ...]) -> list[DataRow]:
    return [parse_text(record, labels)]


def _batch(rows: list[dict[str, Any]], pad: int) -> Batch:
    """ids, mask [B, T] and label [B]."""
    ids, mask = pad_right([row["input_ids"] for row in rows], pad)
    return {"ids": ids, "mask": mask, "label": torch.tensor([row["label"] for row in rows])}


def learn(ctx: StageContext[Classification], model: RoleModel, role: str = CLASSIFIER) -> TrainingSteps[None]:
    """On every worker."""
    yield from learn_labels(ctx, model, TextClassification(role, ctx.stage.labels), open_rows(ctx, texts(ctx.stage)))
