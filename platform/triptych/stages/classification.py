"""Classification: texts -> an adapter and a linear head that names their class, read at the end token."""

from functools import partial
from typing import Any

import pyarrow as pa
import torch

from triptych.data.batches import pad_right
from triptych.data.encode import encode_texts
from triptych.data.rows import Row, parse_text
from triptych.models.heads import ClassHead
from triptych.recipe import Classification
from triptych.registry import AdapterVersion
from triptych.stages.context import StageContext, finish, measured
from triptych.stages.encoding import TOKENS, Examples
from triptych.stages.models import role_model
from triptych.stages.supervised import add_role, fit_and_evaluate, learner_for, open_rows, prepare, save, train
from triptych.stages.table import StoredTable
from triptych.train.batch import Batch
from triptych.train.tasks import TextClassification

CLASSIFIER = "classifier"


def run(ctx: StageContext[Classification]) -> AdapterVersion:
    """Texts -> tables -> training -> registered classifier. Goes on from where an earlier call stopped."""
    prepared = prepare(ctx, texts(ctx.stage))
    train(ctx, _train)
    return finish(ctx, prepared.inputs, "classifier", measured(ctx), prepared.data)


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


def _parse(record: dict[str, Any], labels: tuple[str, ...]) -> list[Row]:
    return [parse_text(record, labels)]


def _batch(rows: list[dict[str, Any]], pad: int) -> Batch:
    """ids, mask [B, T] and label [B]."""
    ids, mask = pad_right([row["input_ids"] for row in rows], pad)
    return {"ids": ids, "mask": mask, "label": torch.tensor([row["label"] for row in rows])}


def _train(config: dict[str, Any]) -> None:
    """On every worker of the Ray Train group."""
    ctx: StageContext[Classification] = config["ctx"]
    stage = ctx.stage
    rows = open_rows(ctx, texts(stage))
    model = role_model(ctx, stage.train.memory)
    add_role(model, CLASSIFIER, stage.method, ClassHead(model.hidden_size, len(stage.labels)))
    learner = learner_for(ctx, model, [CLASSIFIER], rows)
    metrics = fit_and_evaluate(ctx, learner, TextClassification(CLASSIFIER, len(stage.labels)), rows)
    if metrics:
        scores = [metrics.pop(f"heldout_f1_{label}") for label in range(len(stage.labels))]
        metrics |= {f"heldout_f1_{name}": score for name, score in zip(stage.labels, scores, strict=True)}
        metrics["heldout_macro_f1"] = sum(scores) / len(scores)
    save(ctx, learner, CLASSIFIER, "classifier", metrics, stage.labels)
