"""Direct preference optimisation: pairs of answers -> a policy that prefers what people preferred."""

from typing import Any

from triptych.forward.roles import RoleModel
from triptych.recipe import POLICY
from triptych.recipe.preference import Dpo
from triptych.registry import AdapterVersion
from triptych.stages.artifact import commit_role, finish, measured
from triptych.stages.context import StageContext
from triptych.stages.start import add_role, going_on
from triptych.stages.supervised.references import with_references
from triptych.stages.supervised.training import fit_and_evaluate, learner_for, open_rows, prepare, train
from triptych.train.batch import Batch, answer_batch
from triptych.train.stepping import TrainingSteps
from triptych.train.tasks.dpo import PairPreference, pair_logps


def run(ctx: StageContext[Dpo]) -> AdapterVersion:
    """Pairs -> tables -> training -> registered policy. Goes on from where an earlier call stopped."""
    ctx = going_on(ctx)
    prepared = prepare(ctx)
    train(ctx, learn)
    return finish(ctx, prepared.inputs, measured(ctx), prepared.data)


def batch_of_pairs(rows: list[dict[str, Any]], pad: int) -> Batch:
    """ids, mask [2B, T], start and length [2B]: all chosen, then all rejected."""
    sequences = [row[side] for side in ("chosen", "rejected") for row in rows]
    return answer_batch(sequences, [row["start"] for row in rows] * 2, pad)


def learn(ctx: StageContext[Dpo], model: RoleModel, role: str = POLICY) -> TrainingSteps[None]:
    """On every worker: the references of all pairs, then a policy trained, measured and saved."""
    stage = ctx.stage
    rows = open_rows(ctx, batch_of_pairs)
    add_role(ctx, model, role)
    learner = learner_for(ctx, model, {role: POLICY}, rows)
    rows = with_references(ctx, learner, role, rows, pair_logps, ("ref_chosen", "ref_rejected"))
    objective = PairPreference(role, stage.loss, stage.sft_weight)
    metrics = yield from fit_and_evaluate(ctx, learner, objective, rows)
    commit_role(ctx, learner, role, metrics)
