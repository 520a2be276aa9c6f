"""Question answering: questions on a context -> an adapter and a linear head that finds the answer in the context.

The head gives every token of the context a score as the answer's first and as its last token. Every question has an
answer in its context; those without one are malformed rows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from triptych import storage
from triptych.data.batches import pad_right
from triptych.data.examples import POSITIONS
from triptych.data.table import StoredTable
from triptych.data.text_scores import answer_scores
from triptych.forward.roles import RoleModel
from triptych.recipe import CLASSIFIER
from triptych.recipe.kinds import QuestionAnswering
from triptych.registry import AdapterVersion
from triptych.stages.context import StageContext
from triptych.stages.supervised.heads import label, learn_labels
from triptych.stages.supervised.loop import Rows
from triptych.stages.supervised.training import open_rows
from triptych.train.batch import Batch
from triptych.train.stepping import TrainingSteps
from triptych.train.tasks.question_answering import SpanSelection


def run(ctx: StageContext[QuestionAnswering]) -> AdapterVersion:
    """Questions -> tables -> training -> registered classifier. Goes on from where an earlier call stopped."""
    return label(ctx, learn)


def batch_of_questions(rows: list[dict[str, Any]], pad: int) -> Batch:
    """ids, mask [B, T], and `context_start`, `start`, `end` [B]."""
    ids, mask = pad_right([row["input_ids"] for row in rows], pad)
    numbers = {name: torch.tensor([row[name] for row in rows]) for name in POSITIONS}
    return {"ids": ids, "mask": mask} | numbers


@dataclass(frozen=True)
class Judge:
    """Exact match and F1 of an answer, given by its first and last token, to a question of a table."""

    table: StoredTable

    def __call__(self, row: int, first: int, last: int) -> tuple[float, float]:
        offsets = self.table.cell("offsets", row)
        text = self.table.cell("context", row)[offsets[2 * first] : offsets[2 * last + 1]]
        return answer_scores(text, json.loads(self.table.cell("answers", row)))


def numbered(rows: Rows) -> Rows:
    """The same rows, whose batches say which they are: `row` [B]."""

    def batch(some: Sequence[int]) -> Batch:
        return rows.batch(some) | {"row": torch.tensor(some)}

    return Rows(rows.sequences, batch)


def learn(ctx: StageContext[QuestionAnswering], model: RoleModel, role: str = CLASSIFIER) -> TrainingSteps[None]:
    """On every worker."""
    rows, judge = open_rows(ctx, batch_of_questions), None
    if "heldout" in rows:
        rows["heldout"] = numbered(rows["heldout"])
        judge = Judge(StoredTable(storage.join(ctx.folder, "data", "heldout")))
    yield from learn_labels(ctx, model, SpanSelection(role, ctx.stage.max_answer_tokens, judge), rows)
