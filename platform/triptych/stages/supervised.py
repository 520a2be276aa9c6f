"""What the stages that learn from rows share, from the sources to the registered artifact."""

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from ray.train.torch import get_device
from torch import Tensor

from triptych import storage
from triptych.data.sources import survey
from triptych.errors import UserError
from triptych.forward.roles import HEAD, RoleModel
from triptych.methods.adalora import ranks
from triptych.methods.apply import export_method
from triptych.methods.freeze import whole
from triptych.models.adapter import Adapter, save_adapter
from triptych.models.full import save_model
from triptych.recipe import Method
from triptych.recipe.matrix import AdaLora
from triptych.recipe.method import Freeze, parts_of, trains_base
from triptych.stages.context import StageContext, remember
from triptych.stages.encoding import Examples, encode
from triptych.stages.loop import Rows, evaluate, fitting, step_rows
from triptych.stages.models import role_model, tokenizer_of
from triptych.stages.table import StoredTable
from triptych.train import checkpoint
from triptych.train.batch import Batch
from triptych.train.eva import reads_inputs, start_from_inputs
from triptych.train.group import Group
from triptych.train.learner import Learner, Objective
from triptych.train.on_ray import launch
from triptych.train.side_by_side import Steps, take


class Learn(Protocol):
    """A stage's training, which ends with the committed artifact."""

    def __call__(self, ctx: StageContext[Any], model: RoleModel, role: str = ..., /) -> Steps[None]:
        """On a model that may have other roles; `role`: where it is not the stage's own."""


@dataclass(frozen=True)
class Prepared:
    """What a stage starts from."""

    inputs: dict[str, Any]
    data: dict[str, dict[str, int]]
    """By split: `rows` of the table, and how many of the source's were truncated, split, dropped, unlearnable."""


def prepare(ctx: StageContext[Any], examples: Examples) -> Prepared:
    """The stage's sources as committed tables.

    Raises:
        UserError: a source is refused, the stage's folder was begun from something else, nothing is left to learn
            from, or a micro-batch has no room for the longest row.
    """
    splits = ctx.stage.data.splits()
    surveys = {split: survey(source, examples.kind, examples.parse) for split, source in splits.items()}
    inputs = remember(ctx, {split: found.digest for split, found in surveys.items()}, {})
    data = {split: encode(ctx, split, found, examples) for split, found in surveys.items()}
    for split in splits:
        lengths = examples.length(StoredTable(storage.join(ctx.folder, "data", split)))
        check_budget(ctx, split, int(lengths.max()))
    return Prepared(inputs, data)


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
    take(config["learn"](ctx, role_model(ctx, ctx.stage.train.memory, get_device())))


def open_rows(ctx: StageContext[Any], examples: Examples) -> dict[str, Rows]:
    """The prepared tables, by split. On a worker."""
    pad = tokenizer_of(ctx).pad_token_id
    return {split: examples.rows(storage.join(ctx.folder, "data", split), pad) for split in ctx.stage.data.splits()}


def learner_for(
    ctx: StageContext[Any],
    model: RoleModel,
    roles: Mapping[str, str],
    rows: Mapping[str, Rows],
    kind: type[Learner] = Learner,
) -> Learner:
    """A learner of these roles, alike for all, over the whole stage; `roles`: what checkpoints call each."""
    training = ctx.stage.train
    if reads_inputs(ctx.stage.method):
        start_from_inputs(model, list(roles), _first_batches(ctx, model, rows["train"]), Group())
    steps = training.total_steps(len(rows["train"].sequences))
    return kind(
        model,
        dict.fromkeys(roles, training.optimizer),
        dict.fromkeys(roles, steps),
        dropout=True,
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
) -> Steps[dict[str, float]]:
    """Train to the end; the metrics on held-out rows, none where there are none."""
    heldout = rows.get("heldout")
    yield from fitting(ctx, learner, objective, rows["train"], heldout)
    return evaluate(ctx, learner, objective, heldout) if heldout else {}


def adapter_of(method: Method, weights: Mapping[str, Tensor], kind: str) -> Adapter:
    """What a role trained, as `Learner.weights` gives it, in the form of its files: the method's, and its head's."""
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(HEAD)}
    head = {name.removeprefix(HEAD): tensor for name, tensor in weights.items() if name.startswith(HEAD)}
    parts = {part.method.name: part for part in export_method(method, own).values()}
    before = {name: f"{name}." if len(parts) > 1 else "" for name in parts}
    exported = tuple(part.method for part in parts.values())
    return Adapter(
        exported if len(parts) > 1 else exported[0],
        {f"{before[name]}{key}": tensor for name, part in parts.items() for key, tensor in part.weights.items()},
        kind,
        {name: part.config for name, part in parts.items() if part.config is not None},
        {name: part.peft for name, part in parts.items() if part.peft is not None},
        head or None,
        state=own if exported != parts_of(method) else None,
        trained=method,
    )


def write_ranks(ctx: StageContext[Any], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the ranks that AdaLoRA left, by role, for the report; nothing for another method."""
    if any(isinstance(part, AdaLora) for part in parts_of(ctx.stage.method)):
        found = {role: ranks(own) for role, own in weights.items()}
        storage.write_bytes(storage.join(ctx.folder, "ranks.json"), json.dumps(found).encode())


def save(
    ctx: StageContext[Any],
    learner: Learner,
    role: str,
    kind: str,
    metrics: Mapping[str, float],
    labels: Sequence[str] = (),
) -> None:
    """Commit the role as the stage's artifact, and the metrics with it. Every rank calls it; rank 0 writes."""
    weights = learner.weights(role)
    if learner.group.rank == 0:
        write_ranks(ctx, {role: weights})
        with storage.committed(ctx.artifact) as folder:
            if isinstance(ctx.stage.method, Freeze):
                weights = whole(ctx.stage.method, ctx.base_dir, weights)
            if trains_base(ctx.stage.method):
                save_model(folder, ctx.base_dir, weights, getattr(torch, ctx.recipe.model.dtype), ctx.about())
            else:
                adapter = adapter_of(ctx.stage.method, weights, kind)
                save_adapter(folder, dataclasses.replace(adapter, labels=tuple(labels)), ctx.about())
            (folder / "metrics.json").write_text(json.dumps(dict(metrics)))
