"""The first rows of the tables that stages train on, by which a plan predicts their memory and speed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from triptych.data.rows import DataRow
from triptych.recipe import Recipe
from triptych.recipe.work_shape import MicroBatch, Shares

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUT_FILL: Shares = (0.85, 1.0, 1.2)
"""Low, expected and high share of the largest micro-batch where a table goes on: later rows may be longer."""


@dataclass(frozen=True)
class FirstRows:
    """Rows of the training tables that are on this machine, by stage, and the tokenizer that renders them."""

    rows: Mapping[str, Sequence[DataRow]]
    tokenizer: "PreTrainedTokenizerBase | None"
    """None: there is none here, and the rows were only parsed."""
    most: int
    """Rows of each file that were read, at most."""

    def largest_batches(self, recipe: Recipe) -> dict[str, MicroBatch]:
        """The largest micro-batch that a stage's rows make, of each stage that trains on some."""
        if self.tokenizer is None:
            return {}
        found: dict[str, MicroBatch] = {}
        for name, rows in self.rows.items():
            stage = recipe.trained.get(name)
            if rows and stage is not None and stage.largest_batch is not None:
                batch: MicroBatch | None = resolve_name(stage.largest_batch)(recipe, stage, rows, self.tokenizer)
                if batch is not None:
                    cut = len(rows) >= self.most and stage.shape().sampling is None
                    found[name] = replace(batch, fill=CUT_FILL) if cut else batch
        return found
