"""What stages share whose head names something: the class of a text, the tag of a word, the borders of an answer."""

from collections.abc import Callable, Mapping
from typing import Any

from triptych.models.heads import ClassHead
from triptych.recipe import Labelling
from triptych.registry import AdapterVersion
from triptych.stages.context import StageContext, finish, measured
from triptych.stages.encoding import Examples
from triptych.stages.loop import Rows
from triptych.stages.models import role_model
from triptych.stages.supervised import fit_and_evaluate, learner_for, prepare, save, train
from triptych.train.learner import Objective

CLASSIFIER = "classifier"
"""The role that is trained, and the kind of what is registered."""


def label(ctx: StageContext[Any], examples: Examples, worker: Callable[[dict[str, Any]], None]) -> AdapterVersion:
    """Rows -> tables -> training by `worker` -> registered classifier."""
    prepared = prepare(ctx, examples)
    train(ctx, worker)
    return finish(ctx, prepared.inputs, CLASSIFIER, measured(ctx), prepared.data)


def learn(ctx: StageContext[Any], objective: Objective, rows: Mapping[str, Rows]) -> None:
    """On every worker: an adapter and a head of the stage's labels, trained, measured and saved."""
    stage: Labelling = ctx.stage
    model = role_model(ctx, stage.train.memory)
    model.add(CLASSIFIER, stage.method, trainable=True, head=ClassHead(model.hidden_size, len(stage.labels)))
    learner = learner_for(ctx, model, [CLASSIFIER], rows)
    metrics = fit_and_evaluate(ctx, learner, objective, rows)
    save(ctx, learner, CLASSIFIER, CLASSIFIER, metrics, stage.labels)
