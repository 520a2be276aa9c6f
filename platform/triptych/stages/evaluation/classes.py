"""Classification: accuracy and macro F1 of classifiers on texts."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from triptych.data import load_rows
from triptych.data.batches import pad_right
from triptych.data.encode import encode_texts
from triptych.data.rows import DataRow, TextRow, parse_text
from triptych.errors import UserError
from triptych.recipe import Evaluation
from triptych.stages.artifact import sources
from triptych.stages.context import StageContext
from triptych.stages.evaluation.base import Figures, MeasureTask, RowColumns, SetRows
from triptych.stages.evaluation.language import counts_of
from triptych.stages.evaluation.models import MeasuredModel
from triptych.stages.evaluation.passes import Passes
from triptych.stages.evaluation.statistics import Statistic, macro_f1, mean
from triptych.stages.models import tokenizer_of
from triptych.train.batch import Batch
from triptych.train.tasks.forward import sequence_scores


def _texts(ctx: StageContext[Evaluation], name: str, models: Sequence[MeasuredModel]) -> SetRows:
    labels = _labels(ctx, models)
    rows = load_rows(sources(ctx)[name], "texts", partial(_of_class, labels=labels))
    limits = ctx.stage.compute.batch
    drop = limits.overlength == "drop"
    found = encode_texts(rows.items, tokenizer_of(ctx), limits.max_length, labels, drop=drop)
    columns: dict[str, Sequence[Any]] = {
        "input_ids": [x.input_ids for x in found.items],
        "label": [labels[x.label] for x in found.items],
    }
    return SetRows(columns, rows.digest, counts_of(found))


def _of_class(row: DataRow, labels: Sequence[str]) -> DataRow:
    assert isinstance(row, TextRow)
    return parse_text({"text": row.text, "label": row.label}, labels)


def _labels(ctx: StageContext[Evaluation], models: Sequence[MeasuredModel]) -> tuple[str, ...]:
    """The classes of all models. UserError: they differ."""
    named = [model.adapter.labels for model in models if model.adapter is not None]
    for i, labels in enumerate(named):
        if set(labels) != set(named[0]):
            raise UserError(
                f"stages.{ctx.name}.models.{i}: {ctx.stage.models[i]} names the classes {', '.join(labels)}; allowed: "
                f"classifiers of the same classes as {ctx.stage.models[0]}, {', '.join(named[0])}"
            )
    return named[0]


def _named(passes: Passes, rows: RowColumns, settings: Any) -> dict[str, list[Any]]:
    def batch(chosen: list[int]) -> Batch:
        ids, mask = pad_right([rows["input_ids"][row] for row in chosen], passes.pad)
        return {"ids": ids, "mask": mask}

    scores = passes.over(rows["input_ids"], batch, sequence_scores)
    return {"named": [passes.labels[label] for label in scores.argmax(dim=1).tolist()]}


def _figures(figures: Figures, settings: Any) -> dict[str, Statistic]:
    there, named = figures.rows["label"], figures.own["named"]
    classes = sorted({*there, *named})
    truth, said = ([classes.index(label) for label in column] for column in (there, named))
    accuracy = mean([float(a == b) for a, b in zip(truth, said, strict=True)])
    return {"accuracy": accuracy, "macro_f1": macro_f1(truth, said, len(classes))}


CLASSIFICATION = MeasureTask(_texts, _named, _figures)
