"""Kahneman-Tversky optimisation: answers that are desirable or not -> a policy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from triptych import storage
from triptych.data.table import StoredTable
from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.recipe import POLICY
from triptych.recipe.preference import Kto
from triptych.registry import AdapterVersion
from triptych.stages.artifact import commit_role, finish, measured
from triptych.stages.context import StageContext
from triptych.stages.models import tokenizer_of
from triptych.stages.start import add_role, going_on
from triptych.stages.supervised.loop import Rows
from triptych.stages.supervised.references import with_references
from triptych.stages.supervised.training import fit_and_evaluate, learner_for, open_rows, prepare, train
from triptych.train.batch import Batch, answer_batch
from triptych.train.stepping import TrainingSteps
from triptych.train.tasks.kto import mismatched, objective, unpaired_logps


def run(ctx: StageContext[Kto]) -> AdapterVersion:
    """Answers -> tables -> training -> registered policy. Goes on from where an earlier call stopped."""
    ctx = going_on(ctx)
    prepared = prepare(ctx)
    for split in ctx.stage.data.splits():
        _check_prompts(ctx, split)
    train(ctx, learn)
    return finish(ctx, prepared.inputs, measured(ctx), prepared.data)


def _check_prompts(ctx: StageContext[Kto], split: str) -> None:
    if Mismatches(_table(ctx, split), ctx.stage.train.batch.max_length).partner(0) is None:
        raise UserError(
            f"stages.{ctx.name}.data.{split}: all rows have the same prompt, and KTO's baseline is of prompts with "
            "answers to others; allowed: rows of two prompts or more"
        )


def _table(ctx: StageContext[Kto], split: str) -> StoredTable:
    return StoredTable(storage.join(ctx.folder, "data", split))


@dataclass(frozen=True)
class Mismatches:
    """The rows of a table, each prompt with an answer to another, of which the baseline is taken.

    A row's partner is the next with another prompt: it does not change from step to step, so that a reference sees each
    but once. (TRL shifts answers by one row as well, before it shuffles.)
    """

    table: StoredTable
    max_length: int
    """Tokens at which the answer is cut."""

    def partner(self, row: int) -> int | None:
        """The row whose answer stands behind this one's prompt; None: all rows have this prompt."""
        prompt, count = self._prompt(row), len(self.table)
        others = ((row + step) % count for step in range(1, count))
        return next((other for other in others if self._prompt(other) != prompt), None)

    def sequence(self, row: int) -> list[int]:
        """The tokens of a row's prompt, and of its partner's answer as far as there is room."""
        other = self.partner(row)
        if other is None:
            raise ValueError("a table of one prompt, which was to be refused before")
        ids: list[int] = self.table.cell("input_ids", other)
        return [*self._prompt(row), *ids[self.table.cell("start", other) :]][: self.max_length]

    def _prompt(self, row: int) -> list[int]:
        ids: list[int] = self.table.cell("input_ids", row)
        return ids[: self.table.cell("start", row)]


def batch_of_answers(rows: list[dict[str, Any]], pad: int) -> Batch:
    """ids, mask [B, T], start, length and desirable [B]."""
    batch = answer_batch([row["input_ids"] for row in rows], [row["start"] for row in rows], pad)
    return batch | {"desirable": torch.tensor([row["desirable"] for row in rows])}


def with_mismatches(ctx: StageContext[Kto], split: str, rows: Rows) -> Rows:
    """The rows, whose batches have the prompts with answers to others as well."""
    found = Mismatches(_table(ctx, split), ctx.stage.train.batch.max_length)
    pad = tokenizer_of(ctx).pad_token_id

    def batch(some: Sequence[int]) -> Batch:
        own = rows.batch(some)
        return own | mismatched(answer_batch([found.sequence(row) for row in some], own["start"].tolist(), pad))

    return Rows(rows.sequences, batch)


def learn(ctx: StageContext[Kto], model: RoleModel, role: str = POLICY) -> TrainingSteps[None]:
    """On every worker: the references of all answers, then a policy trained, measured and saved."""
    rows = {split: with_mismatches(ctx, split, own) for split, own in open_rows(ctx, batch_of_answers).items()}
    add_role(ctx, model, role)
    learner = learner_for(ctx, model, {role: POLICY}, rows)
    rows = with_references(ctx, learner, role, rows, unpaired_logps, ("ref_logps", "ref_mismatched"))
    metrics = yield from fit_and_evaluate(ctx, learner, objective(ctx.stage, role), rows)
    commit_role(ctx, learner, role, metrics)
