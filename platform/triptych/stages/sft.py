"""Supervised fine-tuning: chats -> a LoRA adapter whose loss counted the assistant's tokens only."""

import json
from typing import Any

from triptych import storage
from triptych.data import encode_sft, load_rows
from triptych.methods import method_config
from triptych.models.adapter import Adapter, save_adapter
from triptych.recipe import Sft, Source
from triptych.registry import AdapterVersion
from triptych.stages.context import StageContext, begin, finish, measured
from triptych.stages.loop import Rows, evaluate, fit, total_steps
from triptych.stages.models import role_model, tokenizer_of
from triptych.stages.table import Table, read_table
from triptych.train.batch import language_batch
from triptych.train.learner import Learner
from triptych.train.on_ray import launch
from triptych.train.tasks import LanguageModeling

POLICY = "policy"


def run(ctx: StageContext[Sft]) -> AdapterVersion:
    """Rows -> table -> training -> registered adapter. Goes on from where an earlier call stopped."""
    tables = {split: _encode(ctx, source) for split, source in ctx.stage.data.splits().items()}
    inputs = begin(ctx, tables, {})
    if storage.read_manifest(ctx.artifact) is None:
        launch(ctx.name, _train, {"ctx": ctx}, ctx.stage.train.workers, storage.join(ctx.folder, "ray"))
    return finish(ctx, inputs, "lora", measured(ctx))


def _encode(ctx: StageContext[Sft], source: Source) -> Table:
    """Load and encode a source's rows."""
    rows = load_rows(source, "sft")
    encoded = encode_sft(rows.items, tokenizer_of(ctx), ctx.stage.train.batch.max_length)
    columns = {"input_ids": [item.input_ids for item in encoded.items], "labels": [i.labels for i in encoded.items]}
    return Table(columns, rows.digest)


def _rows(ctx: StageContext[Sft], split: str, pad: int) -> Rows:
    table = read_table(storage.join(ctx.folder, "data", split))
    examples = list(zip(table["input_ids"], table["labels"], strict=True))
    return Rows(
        lengths=[len(ids) for ids, _ in examples],
        batch=lambda rows: language_batch([examples[row] for row in rows], pad),
    )


def _train(config: dict[str, Any]) -> None:
    """On every worker of the Ray Train group."""
    ctx: StageContext[Sft] = config["ctx"]
    stage = ctx.stage
    pad = tokenizer_of(ctx).pad_token_id
    train = _rows(ctx, "train", pad)
    heldout = _rows(ctx, "heldout", pad) if stage.data.heldout else None
    model = role_model(ctx)
    model.add(POLICY, method_config(stage.method), trainable=True)
    steps = total_steps(stage, len(train.lengths))
    learner = Learner(model, {POLICY: stage.train.optimizer}, {POLICY: steps}, dropout=True)
    objective = LanguageModeling(POLICY)

    fit(ctx, learner, objective, train, heldout)

    metrics = evaluate(ctx, learner, objective, heldout) if heldout else {}
    if learner.group.rank == 0:
        with storage.committed(ctx.artifact) as folder:
            save_adapter(folder, Adapter(method_config(stage.method), model.adapter(POLICY), "lora"), ctx.about())
            (folder / "metrics.json").write_text(json.dumps(metrics))
