"""The interface of a measure: rows to tokens, tokens to numbers of each row, numbers to figures."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.recipe import Evaluation
from triptych.recipe.measures import Better, MeasureBase
from triptych.stages.context import StageContext
from triptych.stages.evaluation.models import MeasuredModel
from triptych.stages.evaluation.passes import Passes
from triptych.stages.evaluation.statistics import Statistic

RowColumns = Mapping[str, Sequence[Any]]
"""Equally long columns, by name: a value of each row."""


@dataclass(frozen=True)
class SetRows:
    """The rows of a set as tokens."""

    columns: RowColumns
    digest: str
    """Digest of the rows that they were made of."""
    counts: Mapping[str, int]
    """Rows that there are, and what became of others."""


@dataclass(frozen=True)
class Figures:
    """What a model's rows are measured by."""

    own: RowColumns
    """RowColumns that `score` gave for the model."""
    first: RowColumns | None
    """Those of the stage's first model; None: it is this one."""
    rows: RowColumns
    """The rows as tokens."""


def _named_by_recipe(measure: MeasureBase) -> dict[str, Better]:
    return measure.figures()


@dataclass(frozen=True)
class MeasureTask:
    """One measure."""

    encode: Callable[[StageContext[Evaluation], str, Sequence[MeasuredModel]], SetRows]
    """The stage, the name of the set, the models -> its rows. On the driver."""
    score: Callable[[Passes, RowColumns, Any], dict[str, list[Any]]]
    """Passes of a model, the rows (with its answers, if engines answer them), the measure's settings -> columns of each
    row. Every rank calls it alike."""
    estimates: Callable[[Figures, Any], dict[str, Statistic]]
    """RowColumns, and the measure's settings -> figures by name."""
    figures: Callable[[Any], Mapping[str, Better]] = _named_by_recipe
    """The measure's settings -> the figures that it gives, as of `MeasureBase.figures`, from whoever knows them."""
