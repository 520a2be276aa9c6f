"""Reward model: preference pairs -> adapters or a whole model, with a scalar head and what normalises its score."""

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from triptych import storage
from triptych.data.table import StoredTable, read_table
from triptych.forward.export import adapter_of
from triptych.forward.roles import HEAD, RoleModel
from triptych.models.adapter import Normalization
from triptych.models.heads import ScalarHead
from triptych.models.whole_reward import save_whole_reward
from triptych.recipe import REWARD, member_roles
from triptych.recipe.kinds import Reward
from triptych.recipe.method import trains_base
from triptych.registry import AdapterVersion
from triptych.stages.artifact import (
    check_gate,
    commit_adapter,
    committed_output,
    finish,
    measured,
    whole_weights,
    write_ranks,
)
from triptych.stages.context import StageContext
from triptych.stages.models import tokenizer_of
from triptych.stages.start import add_role, going_on, start_folder
from triptych.stages.supervised.loop import fitting
from triptych.stages.supervised.reward_evaluation import (
    Pairs,
    draw_pairs,
    measure_normalization,
    reward_report,
    score_pairs,
    shared_prompts,
)
from triptych.stages.supervised.training import learner_for, open_rows, prepare, train
from triptych.train.batch import Batch, pair_batch
from triptych.train.learner import Learner, Objective, StepReport
from triptych.train.stepping import TrainingSteps
from triptych.train.tasks.reward import PairwiseReward

NORMALIZED_PAIRS = 256
"""Training pairs whose scores give mean and standard deviation: of as many prompts, the error of the mean is 4% of a
standard deviation."""

log = logging.getLogger(__name__)


def run(ctx: StageContext[Reward]) -> AdapterVersion:
    """Pairs -> tables -> training -> gate -> registered reward model. Goes on from where an earlier call stopped."""
    ctx = going_on(ctx)
    prepared = prepare(ctx)
    _warn_of_shared_prompts(ctx)
    train(ctx, learn)
    metrics = measured(ctx)
    check_gate(ctx.name, ctx.stage, metrics)
    return finish(ctx, prepared.inputs, metrics, prepared.data)


def batch_of_pairs(rows: list[dict[str, Any]], pad: int) -> Batch:
    """ids, mask [2B, T]: all chosen, then all rejected; `margin` [B] where there are margins."""
    batch = pair_batch([(row["chosen"], row["rejected"]) for row in rows], pad)
    return batch | ({"margin": torch.tensor([row["margin"] for row in rows])} if "margin" in rows[0] else {})


def _warn_of_shared_prompts(ctx: StageContext[Reward]) -> None:
    if ctx.stage.data.heldout is None:
        return
    shared, asked = shared_prompts(_table(ctx, "train"), _table(ctx, "heldout"))
    if shared:
        log.warning(
            "stage %s: %d of %d held-out prompts are training prompts too, so held-out accuracy flatters the model",
            ctx.name,
            shared,
            asked,
        )


def _table(ctx: StageContext[Reward], split: str) -> Pairs:
    return read_table(storage.join(ctx.folder, "data", split))


class Ensemble(Learner):
    """Trains each member of an ensemble by itself, all on the same micro-batches."""

    def step(self, objective: Objective, micro_batches: Sequence[Batch | None]) -> StepReport:
        """A step of every member; metrics are means over members, seconds are sums."""
        if not isinstance(objective, PairwiseReward):
            raise TypeError(f"an ensemble learns from pairs, not by {type(objective).__name__}")
        steps = [super(Ensemble, self).step(member, micro_batches) for member in objective.members()]
        metrics = {name: sum(step.metrics[name] for step in steps) / len(steps) for name in steps[0].metrics}
        seconds = {name: sum(step.seconds[name] for step in steps) for name in steps[0].seconds}
        return dataclasses.replace(steps[0], metrics=metrics, seconds=seconds)


def learn(ctx: StageContext[Reward], model: RoleModel, role: str = REWARD) -> TrainingSteps[None]:
    """On every worker."""
    stage = ctx.stage
    rows = open_rows(ctx, batch_of_pairs)
    roles = dict(zip(member_roles(role, stage.members), member_roles(REWARD, stage.members), strict=True))
    for number, member in enumerate(roles):  # each draws its own adapter and head, if it does not go on from one
        add_role(ctx, model, member, ScalarHead(model.hidden_size), number)
    learner = learner_for(ctx, model, roles, rows, Ensemble)
    objective = PairwiseReward(role, stage.centering, tuple(roles)[1:])

    yield from fitting(ctx, learner, objective, rows["train"], rows.get("heldout"))

    budget = stage.train.batch.micro_tokens
    members = list(roles)
    normalization = measure_normalization(score_pairs(learner, members, rows["train"], budget, _drawn(ctx)))
    scores = score_pairs(learner, members, rows["heldout"], budget) if "heldout" in rows else None
    weights = {member: learner.weights(member) for member in members}
    if learner.group.rank == 0:
        metrics = {} if scores is None else _measured(ctx, objective, scores, normalization)
        _commit(ctx, model, weights, normalization, metrics)


def _drawn(ctx: StageContext[Reward]) -> list[int]:
    """Training pairs that constants of normalisation are measured on, the same on every rank."""
    table = StoredTable(storage.join(ctx.folder, "data", "train"))

    def prompt_of(row: int) -> tuple[int, ...]:
        return tuple(table.cell("chosen", row)[: table.cell("start", row)])

    return draw_pairs(len(table), prompt_of, NORMALIZED_PAIRS, ctx.recipe.seed)


def _measured(
    ctx: StageContext[Reward], objective: PairwiseReward, scores: Tensor, normalization: Normalization
) -> dict[str, float]:
    """Write the report on held-out pairs, from their scores [members, pairs, 2]; metrics back, the loop's and more.

    None where a score is no number: such a model passes no gate.
    """
    heldout = _table(ctx, "heldout")
    if lost := int((~scores.isfinite().all(dim=(0, 2))).sum()):
        log.warning("stage %s: %d of %d held-out pairs have a score that is no number", ctx.name, lost, scores.shape[1])
        return {}
    report = reward_report(scores, heldout, _table(ctx, "train"), normalization)
    storage.write_bytes(storage.join(ctx.folder, "evaluations", "reward.json"), json.dumps(report).encode())
    margin = torch.tensor(heldout["margin"]) if "margin" in heldout else None
    _, found = objective.of_scores(scores.transpose(1, 2).flatten(1), margin)
    metrics = {f"heldout_{name}": float(total / weight) for name, (total, weight) in found.items()}
    return metrics | {"heldout_ece": report["calibration"]["ece"]}


def _commit(
    ctx: StageContext[Reward],
    model: RoleModel,
    weights: Mapping[str, Mapping[str, Tensor]],
    normalization: Normalization,
    metrics: Mapping[str, float],
) -> None:
    """Commit the weights of all members, by role, as the reward model. Rank 0 calls it."""
    write_ranks(ctx, weights)
    if trains_base(ctx.stage.method):
        (own,) = weights.values()
        _commit_whole(ctx, model, own, normalization, metrics)
        return
    first, *others = (
        dataclasses.replace(adapter_of(ctx.stage.method, own, ctx.stage.output), normalization=normalization)
        for own in weights.values()  # each member keeps the constants of the ensemble
    )
    commit_adapter(ctx, dataclasses.replace(first, others=tuple(others)), metrics)


def _commit_whole(
    ctx: StageContext[Reward],
    model: RoleModel,
    trained: Mapping[str, Tensor],
    normalization: Normalization,
    metrics: Mapping[str, float],
) -> None:
    """Commit a reward model whose method trains the base."""
    method: Any = ctx.stage.method
    head = {name.removeprefix(HEAD): tensor for name, tensor in trained.items() if name.startswith(HEAD)}
    own = {name: tensor for name, tensor in trained.items() if not name.startswith(HEAD)}
    start = start_folder(ctx) or ctx.base_dir
    weights = whole_weights(method, model.lm, start, own)
    dtype = getattr(torch, ctx.recipe.model.dtype)
    with committed_output(ctx, metrics) as folder:
        save_whole_reward(folder, start, method, weights, head, normalization, dtype, tokenizer_of(ctx), ctx.about())
