"""Reward model: preference pairs -> a LoRA adapter and a scalar head, with the constants that normalise its scores."""

import json
import math
from typing import Any

import torch
from torch import Tensor

from triptych import storage
from triptych.data import encode_pairs, load_rows
from triptych.errors import RunError
from triptych.methods import method_config
from triptych.models.adapter import Adapter, Normalization, save_adapter
from triptych.models.heads import ScalarHead
from triptych.recipe import Reward, Source
from triptych.registry import AdapterVersion
from triptych.stages.context import StageContext, begin, finish, measured
from triptych.stages.loop import Rows, evaluate, fit, total_steps
from triptych.stages.models import role_model, tokenizer_of
from triptych.stages.table import Table, read_table
from triptych.train.batch import pair_batch
from triptych.train.learner import Learner
from triptych.train.on_ray import launch
from triptych.train.tasks import PairwiseReward, sequence_scores

REWARD = "reward"


def run(ctx: StageContext[Reward]) -> AdapterVersion:
    """Pairs -> table -> training -> gate -> registered reward model. Goes on from where an earlier call stopped."""
    tables = {split: _encode(ctx, source) for split, source in ctx.stage.data.splits().items()}
    inputs = begin(ctx, tables, {})
    if storage.read_manifest(ctx.artifact) is None:
        launch(ctx.name, _train, {"ctx": ctx}, ctx.stage.train.workers, storage.join(ctx.folder, "ray"))
    metrics = measured(ctx)
    accuracy = metrics.get("heldout_accuracy", 0.0)
    if accuracy < ctx.stage.min_accuracy:
        raise RunError(
            f"stage {ctx.name}: accuracy {accuracy:.3f} on held-out pairs is below min_accuracy "
            f"{ctx.stage.min_accuracy}; nothing was registered (the model lies in {ctx.artifact})"
        )
    return finish(ctx, inputs, "reward", metrics)


def _encode(ctx: StageContext[Reward], source: Source) -> Table:
    """Load and encode a source's pairs."""
    rows = load_rows(source, "pairs")
    encoded = encode_pairs(rows.items, tokenizer_of(ctx), ctx.stage.train.batch.max_length)
    columns = {"chosen": [pair.chosen for pair in encoded.items], "rejected": [p.rejected for p in encoded.items]}
    return Table(columns, rows.digest)


def _rows(ctx: StageContext[Reward], split: str, pad: int) -> Rows:
    table = read_table(storage.join(ctx.folder, "data", split))
    pairs = list(zip(table["chosen"], table["rejected"], strict=True))
    return Rows(
        # A pair is two rows, both padded to the longer one.
        lengths=[2 * max(len(chosen), len(rejected)) for chosen, rejected in pairs],
        batch=lambda rows: pair_batch([pairs[row] for row in rows], pad),
    )


def _train(config: dict[str, Any]) -> None:
    """On every worker of the Ray Train group."""
    ctx: StageContext[Reward] = config["ctx"]
    stage = ctx.stage
    pad = tokenizer_of(ctx).pad_token_id
    train = _rows(ctx, "train", pad)
    heldout = _rows(ctx, "heldout", pad) if stage.data.heldout else None
    model = role_model(ctx)
    model.add(REWARD, method_config(stage.method), trainable=True, head=ScalarHead(model.hidden_size))
    steps = total_steps(stage, len(train.lengths))
    learner = Learner(model, {REWARD: stage.train.optimizer}, {REWARD: steps}, dropout=True)
    objective = PairwiseReward(REWARD)

    fit(ctx, learner, objective, train, heldout)

    metrics = evaluate(ctx, learner, objective, heldout) if heldout else {}
    normalization = measure_normalization(learner, train, stage.train.batch.micro_tokens)
    if learner.group.rank == 0:
        head = {name: tensor.detach() for name, tensor in model.heads[REWARD].named_parameters()}
        adapter = Adapter(method_config(stage.method), model.adapter(REWARD), "reward", head, normalization)
        with storage.committed(ctx.artifact) as folder:
            save_adapter(folder, adapter, ctx.about())
            (folder / "metrics.json").write_text(json.dumps(metrics))


def measure_normalization(learner: Learner, rows: Rows, budget: int) -> Normalization:
    """Mean and standard deviation of the model's scores of the training answers, chosen and rejected alike."""
    moments = torch.zeros(3, dtype=torch.float64)
    for batch in rows.micro_batches(range(len(rows.lengths)), budget, learner):
        if batch is not None:
            scores: Tensor = learner.forward(REWARD, sequence_scores, batch).double().cpu()
            moments += torch.stack([torch.tensor(float(len(scores))), scores.sum(), scores.square().sum()])
    count, total, squares = (float(value) for value in learner.group.sum(moments))
    mean = total / count
    return Normalization(mean, math.sqrt(max(squares / count - mean * mean, 1e-12)))
