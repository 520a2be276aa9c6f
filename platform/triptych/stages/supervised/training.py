"""Training that the kinds share: prepared rows, workers, a learner, its loop."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from ray.train.torch import get_device

from triptych import storage
from triptych.data.batches import step_rows
from triptych.data.examples import Examples
from triptych.data.sources import survey
from triptych.data.table import Lazy, StoredTable
from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.recipe.work_shape import MicroBatch
from triptych.stages.artifact import data_parents, sources
from triptych.stages.context import StageContext, remember
from triptych.stages.models import role_model, tokenizer_of
from triptych.stages.start import start_folder
from triptych.stages.supervised.encoding import checked_parser, encode, examples_of
from triptych.stages.supervised.largest_batch import largest_batch, learned_tokens
from triptych.stages.supervised.loop import Rows, evaluate, fitting
from triptych.train import checkpoint
from triptych.train.batch import Batch
from triptych.train.eva import reads_inputs, start_from_inputs
from triptych.train.group import Group
from triptych.train.learner import Learner, Objective
from triptych.train.on_ray import launch
from triptych.train.stepping import TrainingSteps, run_training


class Learn(Protocol):
    """A stage's training, which ends with the committed artifact."""

    def __call__(self, ctx: StageContext[Any], model: RoleModel, role: str = ..., /) -> TrainingSteps[None]:
        """On a model that may have other roles; `role`: where it is not the stage's own."""


@dataclass(frozen=True)
class Prepared:
    """What a stage starts from."""

    inputs: dict[str, Any]
    data: dict[str, dict[str, int]]
    """By split: `rows` of the table, and how many of the source's were truncated, split, dropped, unlearnable."""


def prepare(ctx: StageContext[Any]) -> Prepared:
    """The stage's sources as committed tables.

    Raises:
        UserError: a source is refused, the stage's folder was begun from something else, nothing is left to learn
            from, or a micro-batch has no room for the longest row.
    """
    if ctx.stage.start is not None and ctx.start is None:
        raise ValueError(f"stage {ctx.name}: a kind whose runner does not read what it goes on from")
    placed, examples = sources(ctx), examples_of(ctx)
    surveys = {
        split: survey(source, examples.kind, checked_parser(ctx, source, examples)) for split, source in placed.items()
    }
    start = {} if ctx.start_version is None else {ctx.start_version.ref: ctx.start_version.sha256}
    inputs = remember(ctx, {split: found.digest for split, found in surveys.items()}, data_parents(ctx) | start)
    data = {split: encode(ctx, split, placed[split], found, examples) for split, found in surveys.items()}
    for split in placed:
        lengths = [_table(ctx, split).lengths(name) for name in examples.sequences]
        check_budget(ctx, split, int(np.sum(lengths, axis=0).max()))
    ctx.tell_of_data(_largest(ctx, examples))
    return Prepared(inputs, data)


def _largest(ctx: StageContext[Any], examples: Examples) -> MicroBatch:
    table = _table(ctx, "train")

    def learned(row: int) -> int:
        return learned_tokens(examples, lambda name: table.cell(name, row))

    return largest_batch(ctx.recipe, ctx.stage, _sequences(table, examples), Lazy(len(table), learned))


def _table(ctx: StageContext[Any], split: str) -> StoredTable:
    return StoredTable(storage.join(ctx.folder, "data", split))


def _sequences(table: StoredTable, examples: Examples) -> Lazy[list[list[int]]]:
    return Lazy(len(table), lambda row: examples.sequences_of(lambda name: table.cell(name, row)))


def check_budget(ctx: StageContext[Any], split: str, longest: int) -> None:
    """UserError where a micro-batch has no room for a row of `longest` tokens."""
    budget = ctx.stage.train.batch.micro_tokens
    if longest > budget:
        raise UserError(
            f"stages.{ctx.name}.train.batch.micro_tokens: {budget} has no room for the longest row of data.{split}, "
            f"{longest} tokens; allowed: {longest} or more, or lower train.batch.max_length"
        )


def train(ctx: StageContext[Any], learn: Learn) -> None:
    """Run `learn` on the stage's Ray Train group, or where the context says, unless the artifact is there."""
    if storage.read_manifest(ctx.artifact) is not None:
        return
    if ctx.trainer is not None:
        ctx.trainer.train(ctx, learn)
    else:
        config = {"ctx": ctx, "learn": learn}
        launch(ctx.name, _work, config, ctx.stage.train.workers, storage.join(ctx.folder, "ray"))


def _work(config: dict[str, Any]) -> None:
    """On every worker of the Ray Train group."""
    ctx: StageContext[Any] = config["ctx"]
    model = role_model(ctx, ctx.stage.train.memory, get_device(), folder=start_folder(ctx))
    run_training(config["learn"](ctx, model))


def open_rows(ctx: StageContext[Any], batch: Callable[[list[dict[str, Any]], int], Batch]) -> dict[str, Rows]:
    """The prepared tables, by split. On a worker. `batch`: rows of a table, and the padding token -> a micro-batch."""
    pad, examples = tokenizer_of(ctx).pad_token_id, examples_of(ctx)

    def opened(table: StoredTable) -> Rows:
        def batch_of(rows: Sequence[int]) -> Batch:
            return batch([{name: table.cell(name, row) for name in examples.schema.names} for row in rows], pad)

        return Rows(_sequences(table, examples), batch_of)

    return {split: opened(_table(ctx, split)) for split in ctx.stage.data.splits()}


def learner_for(
    ctx: StageContext[Any],
    model: RoleModel,
    roles: Mapping[str, str],
    rows: Mapping[str, Rows],
    kind: type[Learner] = Learner,
) -> Learner:
    """A learner of these roles, alike for all, over the whole stage; `roles`: what checkpoints call each."""
    training = ctx.stage.train
    if ctx.start is None and reads_inputs(ctx.stage.method):
        start_from_inputs(model, list(roles), _first_batches(ctx, model, rows["train"]), Group())
    steps = training.total_steps(len(rows["train"].sequences))
    return kind(
        model,
        dict.fromkeys(roles, training.optimizer),
        dict.fromkeys(roles, steps),
        dropout=ctx.stage.shape().dropout,
        strategy=training.workers.strategy,
        offload=training.workers.offload,
        max_bad_steps=training.max_bad_steps,
        names=roles,
    )


def _first_batches(ctx: StageContext[Any], model: RoleModel, train: Rows) -> Iterator[Batch]:
    """The rows of the first epoch, step by step; none where a checkpoint holds what was made of them."""
    if checkpoint.latest(ctx.checkpoints) is not None:
        return
    batch, count = ctx.stage.train.batch, len(train.sequences)
    for step in range(math.ceil(count / batch.rows)):
        rows = step_rows(count, batch.rows, ctx.recipe.seed, step)
        yield from train.all_batches(rows, batch.micro_tokens, packing=model.packing)


def fit_and_evaluate(
    ctx: StageContext[Any], learner: Learner, objective: Objective, rows: Mapping[str, Rows]
) -> TrainingSteps[dict[str, float]]:
    """Train to the end; the metrics on held-out rows, none where there are none."""
    heldout = rows.get("heldout")
    yield from fitting(ctx, learner, objective, rows["train"], heldout)
    return evaluate(ctx, learner, objective, heldout) if heldout else {}
