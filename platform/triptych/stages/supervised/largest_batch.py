"""The largest micro-batch that a stage's rows make, by which its memory is predicted."""

from collections.abc import Sequence
from typing import Any

from triptych.data.batches import computed_tokens
from triptych.objectives import IGNORE
from triptych.recipe.stage import MicroBatch
from triptych.stages.context import StageContext
from triptych.stages.supervised.loop import Rows, step_rows

SEEN = 64
"""Steps whose micro-batches are looked at: the largest of later ones are no larger but by chance."""
FILL = (0.9, 1.0, 1.1)
"""The micro-batch is full; what an allocator keeps of others is not known."""


def largest_batch(ctx: StageContext[Any], rows: Rows, labels: Sequence[Sequence[int]] | None) -> MicroBatch:
    """Tokens of the largest micro-batch of the first steps, of its longest row, and the most that one learns.

    `labels`: of each row's tokens, where they have logits.
    """
    train, packing = ctx.stage.train, ctx.recipe.model.packing
    count = len(rows.sequences)
    tokens = length = learned = 1
    for step in range(min(SEEN, train.total_steps(count))):
        chosen = step_rows(count, train.batch.rows, ctx.recipe.seed, step)
        for own in rows.cut(chosen, train.batch.micro_tokens, train.workers.fewest, packing=packing):
            for micro in own:
                chosen_rows = [rows.sequences[row] for row in micro]
                tokens = max(tokens, computed_tokens(chosen_rows, packing=packing))
                length = max([length, *(len(sequence) for row in chosen_rows for sequence in row)])
                if labels is not None:
                    learned = max(learned, sum(_learned(labels[row]) for row in micro))
    share = min(1.0, learned / tokens)
    return MicroBatch(tokens, length, FILL, (share, share, share))


def _learned(labels: Sequence[int]) -> int:
    return sum(label != IGNORE for label in labels)
