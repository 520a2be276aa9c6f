"""What stages share whose head names something: the class of a text, the tag of a word, the borders of an answer."""

from collections.abc import Mapping
from typing import Any

from triptych.forward.roles import RoleModel
from triptych.models.heads import ClassHead
from triptych.recipe import CLASSIFIER, LabellingStage
from triptych.registry import AdapterVersion
from triptych.stages.artifact import commit_role, finish, measured
from triptych.stages.context import StageContext
from triptych.stages.start import add_role, going_on
from triptych.stages.supervised.loop import Rows
from triptych.stages.supervised.training import Learn, fit_and_evaluate, learner_for, prepare, train
from triptych.train.learner import Objective
from triptych.train.stepping import TrainingSteps


def label(ctx: StageContext[Any], learn: Learn) -> AdapterVersion:
    """Rows -> tables -> training by `learn` -> registered classifier."""
    ctx = going_on(ctx)
    prepared = prepare(ctx)
    train(ctx, learn)
    return finish(ctx, prepared.inputs, measured(ctx), prepared.data)


def learn_labels(
    ctx: StageContext[Any], model: RoleModel, objective: Objective, rows: Mapping[str, Rows]
) -> TrainingSteps[None]:
    """On every worker: an adapter and a head of the stage's labels, trained, measured and saved."""
    stage: LabellingStage = ctx.stage
    role = objective.role
    add_role(ctx, model, role, ClassHead(model.hidden_size, len(stage.classes)))
    learner = learner_for(ctx, model, {role: CLASSIFIER}, rows)
    metrics = yield from fit_and_evaluate(ctx, learner, objective, rows)
    commit_role(ctx, learner, role, metrics, stage.classes)
