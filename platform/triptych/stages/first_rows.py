"""The first rows of the tables that stages train on, by which a plan predicts their memory and speed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pkgutil import resolve_name
from typing import TYPE_CHECKING

from triptych.data.rows import DataRow
from triptych.recipe import Recipe
from triptych.recipe.stage import MicroBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class FirstRows:
    """Rows of the training tables that are on this machine, by stage, and the tokenizer that renders them."""

    rows: Mapping[str, Sequence[DataRow]]
    tokenizer: "PreTrainedTokenizerBase | None"
    """None: there is none here, and the rows were only parsed."""

    def largest_batches(self, recipe: Recipe) -> dict[str, MicroBatch]:
        """The largest micro-batch that a stage's rows make, of each stage that trains on some."""
        if self.tokenizer is None:
            return {}
        found: dict[str, MicroBatch] = {}
        for name, rows in self.rows.items():
            if rows and (stage := recipe.trained.get(name)):
                batch: MicroBatch | None = resolve_name(stage.largest_batch)(recipe, stage, rows, self.tokenizer)
                found |= {} if batch is None else {name: batch}
        return found
