"""RRHF: ranked answers -> a policy that finds the better ones likelier, and imitates the best."""

from typing import Any

import torch

from triptych.data.rankings import apart
from triptych.forward.roles import RoleModel
from triptych.recipe import POLICY
from triptych.recipe.preference import Rrhf
from triptych.registry import AdapterVersion
from triptych.stages.artifact import commit_role, finish, measured
from triptych.stages.context import StageContext
from triptych.stages.start import add_role, going_on
from triptych.stages.supervised.training import fit_and_evaluate, learner_for, open_rows, prepare, train
from triptych.train.batch import Batch, answer_batch
from triptych.train.stepping import TrainingSteps
from triptych.train.tasks.rrhf import objective


def run(ctx: StageContext[Rrhf]) -> AdapterVersion:
    """Rankings -> tables -> training -> registered policy. Goes on from where an earlier call stopped."""
    ctx = going_on(ctx)
    prepared = prepare(ctx)
    train(ctx, learn)
    return finish(ctx, prepared.inputs, measured(ctx), prepared.data)


def batch_of_rankings(rows: list[dict[str, Any]], pad: int) -> Batch:
    """ids, mask [B, T], start, length, query and score [B]: each row's answers one behind the other."""
    sequences = [sequence for row in rows for sequence in apart(row["input_ids"], row["lengths"])]
    counts = torch.tensor([len(row["lengths"]) for row in rows])
    starts = [row["start"] for row in rows for _ in row["lengths"]]
    scores = torch.tensor([score for row in rows for score in row["scores"]], dtype=torch.float64)
    query = torch.arange(len(rows)).repeat_interleave(counts)
    return answer_batch(sequences, starts, pad) | {"query": query, "score": scores}


def learn(ctx: StageContext[Rrhf], model: RoleModel, role: str = POLICY) -> TrainingSteps[None]:
    """On every worker: a policy trained, measured and saved."""
    rows = open_rows(ctx, batch_of_rankings)
    add_role(ctx, model, role)
    learner = learner_for(ctx, model, {role: POLICY}, rows)
    metrics = yield from fit_and_evaluate(ctx, learner, objective(ctx.stage, role), rows)
    commit_role(ctx, learner, role, metrics)
