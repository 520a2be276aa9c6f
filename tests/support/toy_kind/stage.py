"""Run of the kind: texts -> tables -> training -> registered policy."""

from typing import Any

from tests.support.toy_kind.recipe import Pretraining
from tests.support.toy_kind.task import AllTokens
from triptych.data.batches import pad_right
from triptych.forward.roles import RoleModel
from triptych.recipe import POLICY
from triptych.registry import AdapterVersion
from triptych.stages.artifact import commit_role, finish, measured
from triptych.stages.context import StageContext
from triptych.stages.start import add_role, going_on
from triptych.stages.supervised.training import fit_and_evaluate, learner_for, open_rows, prepare, train
from triptych.train import checkpoint
from triptych.train.batch import Batch
from triptych.train.learner import Metrics, Sums
from triptych.train.stepping import TrainingSteps


def run(ctx: StageContext[Pretraining]) -> AdapterVersion:
    """Texts -> tables -> training -> registered policy. Goes on from where an earlier call stopped."""
    ctx = going_on(ctx)
    prepared = prepare(ctx)
    train(ctx, learn)
    return finish(ctx, prepared.inputs, measured(ctx), prepared.data)


def _batch(rows: list[dict[str, Any]], pad: int) -> Batch:
    ids, mask = pad_right([row["input_ids"] for row in rows], pad)
    return {"ids": ids, "mask": mask}


class FailsOnce(AllTokens):
    """The objective, which raises at its n-th micro-batch."""

    seen = 0

    def loss(self, model: RoleModel, batch: Batch) -> tuple[Sums, Metrics]:
        FailsOnce.seen += 1
        if FailsOnce.seen >= 3:
            raise RuntimeError("the third micro-batch fails")
        return super().loss(model, batch)


def learn(ctx: StageContext[Pretraining], model: RoleModel, role: str = POLICY) -> TrainingSteps[None]:
    """On every worker: an adapter trained, measured and committed."""
    rows = open_rows(ctx, _batch)
    add_role(ctx, model, role)
    learner = learner_for(ctx, model, {role: POLICY}, rows)
    first = checkpoint.latest(ctx.checkpoints) is None
    objective = FailsOnce(role) if ctx.stage.fails_once and first else AllTokens(role)
    metrics = yield from fit_and_evaluate(ctx, learner, objective, rows)
    commit_role(ctx, learner, role, metrics)
