"""Measuring on every worker: each model's numbers of each row, committed one set and model at a time."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from ray.train.torch import get_device

from triptych import storage
from triptych.data.table import read_table
from triptych.forward.roles import BASE, RoleModel
from triptych.models.whole_reward import scoring_head
from triptych.recipe import Evaluation, Memory, member_roles
from triptych.stages.context import StageContext
from triptych.stages.evaluation.answers import Answers, has_answers, read_answers, run_merged
from triptych.stages.evaluation.base import RowColumns
from triptych.stages.evaluation.models import MeasuredModel
from triptych.stages.evaluation.passes import Passes
from triptych.stages.evaluation.table import MEASURES
from triptych.stages.models import role_model, tokenizer_of
from triptych.stages.reward_models import adapter_members
from triptych.train.group import Group
from triptych.train.learner import Learner

ROWS = "rows.parquet"
"""Numbers of each row, in a committed folder."""


def scores_url(ctx: StageContext[Evaluation], name: str, ref: str) -> str:
    """Folder of one model's numbers on one set."""
    return storage.join(ctx.folder, "scores", name, ref)


def left(ctx: StageContext[Evaluation], models: Sequence[MeasuredModel]) -> dict[str, list[str]]:
    """Model -> the sets that it is still to be measured on; models that are done are left out."""
    found = {
        model.ref: [name for name in ctx.stage.sets if storage.read_manifest(scores_url(ctx, name, model.ref)) is None]
        for model in models
    }
    return {ref: names for ref, names in found.items() if names}


def work(config: dict[str, Any]) -> None:
    """On every worker of the Ray Train group."""
    answers = Answers(config["ctx"], config["pool"], run_merged(config["ctx"], config["models"]))
    measure(config["ctx"], config["models"], config["judges"], answers, get_device())


def measure(
    ctx: StageContext[Evaluation],
    models: Sequence[MeasuredModel],
    judges: Sequence[MeasuredModel],
    answers: Answers,
    device: torch.device,
) -> None:
    """Measure what is left.

    Whole models come first, one at a time; then all that is on the base, judges too; then judges that are whole models.
    """
    whole = [judge for judge in judges if judge.folder is not None]
    elsewhere = {judge.ref for judge in whole}
    for model in _needing(ctx, [one for one in models if one.folder is not None], {judge.ref for judge in judges}):
        _measure(ctx, model, answers, _passes(ctx, _learner(ctx, device, model.folder), BASE))
    if on_base := _needing(ctx, models, elsewhere):
        adapters = [judge for judge in judges if judge.folder is None]
        _measure_on_base(ctx, on_base, adapters, answers, _learner(ctx, device))
    for judge in whole:
        if judged := _needing(ctx, models, elsewhere - {judge.ref}):
            _judge_answers(ctx, judged, judge, answers, _learner(ctx, device, judge.folder))


def _needing(
    ctx: StageContext[Evaluation], models: Sequence[MeasuredModel], elsewhere: Collection[str]
) -> list[MeasuredModel]:
    """Models that are still to be measured on a set, or to answer it; sets of judges `elsewhere` need answers alone.

    Every rank calls it, and gets what the first one finds.
    """

    def needs(ref: str, name: str) -> bool:
        return ctx.stage.sets[name].measure.judged_by not in elsewhere or not has_answers(ctx, name, ref)

    needing = [ref for ref, names in left(ctx, models).items() if any(needs(ref, name) for name in names)]
    agreed = Group().broadcast(needing)  # the first rank may have gone on, and left answers
    return [model for model in models if model.ref in agreed]


def _measure_on_base(
    ctx: StageContext[Evaluation],
    models: Sequence[MeasuredModel],
    judges: Sequence[MeasuredModel],
    answers: Answers,
    learner: Learner,
) -> None:
    """Measure the base, the adapters on it, and by judges the answers of whole models.

    The base goes first: engines that run adapters start with it.
    """
    roles = _add_roles(learner.model, [model for model in models if model.folder is None])
    scoring = {one.ref: _add_judge(learner.model, f"judge-{i}", one) for i, one in enumerate(judges)}
    for model in sorted(models, key=lambda model: model.version is not None):
        labels = model.adapter.labels if model.adapter else ()
        _measure(ctx, model, answers, _passes(ctx, learner, roles.get(model.ref, BASE), labels, scoring))


def _judge_answers(
    ctx: StageContext[Evaluation],
    models: Sequence[MeasuredModel],
    judge: MeasuredModel,
    answers: Answers,
    learner: Learner,
) -> None:
    """Have a judge that is a whole model score the answers of all models."""
    assert judge.folder is not None
    role = "judge"
    learner.model.add_plain(role, scoring_head(judge.folder))
    for model in models:
        _measure(ctx, model, answers, _passes(ctx, learner, role, judges={judge.ref: (role,)}))


def _learner(ctx: StageContext[Evaluation], device: torch.device, folder: Path | None = None) -> Learner:
    """A learner that trains nothing, of the base, or of the whole model in `folder`."""
    model = role_model(ctx, Memory(), device, folder=folder)
    return Learner(model, {}, {}, strategy=ctx.stage.workers.strategy)


def _add_roles(model: RoleModel, measured: Sequence[MeasuredModel]) -> dict[str, str]:
    """Put the adapters on the base as frozen roles; the role of each model."""
    roles = {}
    for number, one in enumerate(measured):
        roles[one.ref] = BASE if one.adapter is None else f"model-{number}"
        if one.adapter is not None:
            head = one.adapter.class_head() if one.adapter.labels else None
            adapter = one.adapter
            model.add(roles[one.ref], adapter.method, trainable=False, weights=adapter.weights, head=head)
    return roles


def _add_judge(model: RoleModel, name: str, judge: MeasuredModel) -> tuple[str, ...]:
    """Put a reward model that is an adapter, or an ensemble of such, on the base; the roles of its members."""
    assert judge.adapter is not None
    members = adapter_members(judge.adapter)
    roles = member_roles(name, len(members))
    for role, (member, head) in zip(roles, members, strict=True):
        model.add(role, member.method, trainable=False, weights=member.weights, head=head)
    return roles


def _passes(
    ctx: StageContext[Evaluation],
    learner: Learner,
    role: str,
    labels: tuple[str, ...] = (),
    judges: Mapping[str, tuple[str, ...]] | None = None,
) -> Passes:
    pad = tokenizer_of(ctx).pad_token_id
    return Passes(learner, role, pad, ctx.stage.compute.batch.micro_tokens, labels, judges or {})


def _measure(ctx: StageContext[Evaluation], model: MeasuredModel, answers: Answers, passes: Passes) -> None:
    """One model on the sets that are left. Where the judge of a set is not beside it, the answers are made alone."""
    for name in left(ctx, [model]).get(model.ref, []):
        settings = ctx.stage.sets[name].measure
        rows: RowColumns = read_table(storage.join(ctx.folder, "data", name))
        if settings.generates:
            answers.make(passes, model, name, rows)
            if settings.judged_by is not None and settings.judged_by not in passes.judges:
                continue
            rows = {**rows, **read_answers(ctx, name, model.ref)}
        found = MEASURES[settings.name].score(passes, rows, settings)
        if passes.learner.group.rank == 0:
            commit_scores(ctx, name, model.ref, found)
        passes.learner.group.barrier()


def commit_scores(ctx: StageContext[Evaluation], name: str, ref: str, columns: RowColumns) -> None:
    """Commit a model's numbers on a set, and tell how far the stage is."""
    with storage.committed(scores_url(ctx, name, ref)) as folder:
        pq.write_table(pa.table(dict(columns)), folder / ROWS)
    of = [scores_url(ctx, name, model) for name in ctx.stage.sets for model in ctx.stage.models]
    done = sum(storage.read_manifest(url) is not None for url in of)
    ctx.progress.update(ctx.name, done, len(of), {})


def read_scores(ctx: StageContext[Evaluation], name: str, ref: str) -> Mapping[str, list[Any]]:
    """A model's numbers on a set."""
    columns: dict[str, list[Any]] = pq.read_table(storage.local_copy(scores_url(ctx, name, ref)) / ROWS).to_pydict()
    return columns
