"""Supervised fine-tuning: chats -> a policy whose loss counted the assistant's tokens only."""

from typing import Any

from triptych.forward.roles import RoleModel
from triptych.recipe import POLICY
from triptych.recipe.kinds import Sft
from triptych.registry import AdapterVersion
from triptych.stages.artifact import commit_role, finish, measured
from triptych.stages.context import StageContext
from triptych.stages.start import add_role, going_on
from triptych.stages.supervised.training import fit_and_evaluate, learner_for, open_rows, prepare, train
from triptych.train.batch import Batch, language_batch
from triptych.train.stepping import TrainingSteps
from triptych.train.tasks.language import LanguageModeling


def run(ctx: StageContext[Sft]) -> AdapterVersion:
    """Chats -> tables -> training -> registered adapter. Goes on from where an earlier call stopped."""
    ctx = going_on(ctx)
    prepared = prepare(ctx)
    train(ctx, learn)
    return finish(ctx, prepared.inputs, measured(ctx), prepared.data)


def batch_of_chats(rows: list[dict[str, Any]], pad: int) -> Batch:
    return language_batch([(row["input_ids"], row["labels"]) for row in rows], pad)


def learn(ctx: StageContext[Sft], model: RoleModel, role: str = POLICY) -> TrainingSteps[None]:
    """On every worker: an adapter, or the model, trained, measured and saved."""
    rows = open_rows(ctx, batch_of_chats)
    add_role(ctx, model, role)
    learner = learner_for(ctx, model, {role: POLICY}, rows)
    metrics = yield from fit_and_evaluate(ctx, learner, LanguageModeling(role), rows)
    commit_role(ctx, learner, role, metrics)
