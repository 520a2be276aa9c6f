"""The largest micro-batch that a stage's rows make, by which its memory is predicted."""

from collections.abc import Callable, Sequence
from functools import partial
from pkgutil import resolve_name
from statistics import fmean
from typing import TYPE_CHECKING, Any

from triptych.data.batches import TokenRows, computed_tokens, cut, step_rows
from triptych.data.examples import Examples
from triptych.models.families import packs_rows
from triptych.objectives import IGNORE
from triptych.recipe import Recipe, SupervisedStage
from triptych.recipe.work_shape import MicroBatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEEN = 64
"""Steps whose micro-batches are looked at: the largest of later ones are no larger but by chance."""
SAMPLED = 1000
"""Rows, at least, whose mean length is taken."""
FILL = (0.9, 1.0, 1.1)
"""The micro-batch is full; what an allocator keeps of others is not known."""


def of_rows(
    recipe: Recipe, stage: SupervisedStage, rows: Sequence[Any], tokenizer: "PreTrainedTokenizerBase"
) -> MicroBatch | None:
    """The largest micro-batch of rows that are not encoded yet; None: none of them is left to learn from."""
    examples: Examples = resolve_name(stage.examples)(stage)
    items = examples.encode(rows, tokenizer).items
    sequences = [examples.sequences_of(partial(getattr, item)) for item in items]
    learned = [learned_tokens(examples, partial(getattr, item)) for item in items]
    return largest_batch(recipe, stage, sequences, learned) if items else None


def learned_tokens(examples: Examples, value: Callable[[str], Any]) -> int:
    """Tokens of a row that have logits, where its kind has any: those with a label, or those of answers.

    `value` gives the row's value in a column.
    """
    if "labels" in examples.schema.names:
        return sum(label != IGNORE for label in value("labels"))
    sequences = examples.sequences_of(value)
    before = value("start") if examples.answers else 0
    return sum(len(sequence) - before for sequence in sequences)


def largest_batch(
    recipe: Recipe, stage: SupervisedStage, sequences: TokenRows, learned_of: Sequence[int]
) -> MicroBatch:
    """Tokens of the largest micro-batch of the first steps, of its longest row, and the most that one learns.

    `learned_of`: the tokens of each row that have logits.
    """
    train, packing, count = stage.train, packs_rows(recipe.model), len(sequences)
    tokens = length = learned = 1
    for step in range(min(SEEN, train.total_steps(count))):
        chosen = step_rows(count, train.batch.rows, recipe.seed, step)
        rows = [sequences[row] for row in chosen]
        for own in cut(rows, train.batch.micro_tokens, train.workers.fewest, packing=packing):
            for micro in own:
                batch = [rows[place] for place in micro]
                tokens = max(tokens, computed_tokens(batch, packing=packing))
                length = max([length, *(len(sequence) for row in batch for sequence in row)])
                learned = max(learned, sum(learned_of[chosen[place]] for place in micro))
    share = min(1.0, learned / tokens)
    return MicroBatch(tokens, length, FILL, (share, share, share), _mean_length(sequences))


def _mean_length(sequences: TokenRows) -> float:
    """Mean tokens of a sequence of some rows from the whole table."""
    rows = sequences[:: max(1, len(sequences) // SAMPLED)]
    return fmean(len(sequence) for row in rows for sequence in row)
