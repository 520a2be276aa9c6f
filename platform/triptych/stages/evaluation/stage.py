"""Evaluation: rows -> numbers of each row by each model -> figures side by side, registered, judged by gates."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from triptych import storage
from triptych.artifact_kinds import kind_fields
from triptych.data.table import Table
from triptych.errors import UserError
from triptych.models.peft_files import FACTS
from triptych.observe.evaluations import FIGURES
from triptych.recipe import Evaluation
from triptych.registry import AdapterVersion
from triptych.stages.artifact import committed_output, data_parents, finish, measured
from triptych.stages.context import StageContext, begin
from triptych.stages.evaluation.answers import start_pool
from triptych.stages.evaluation.base import SetRows
from triptych.stages.evaluation.comparison import Estimates, check_gates, comparison, estimates, flat
from triptych.stages.evaluation.models import MeasuredModel, judge, measured_models
from triptych.stages.evaluation.table import MEASURES
from triptych.stages.evaluation.worker import left, read_scores, work
from triptych.train.on_ray import launch


def run(ctx: StageContext[Evaluation]) -> AdapterVersion:
    """Measure what is not measured yet, judge, register. Goes on from where an earlier call stopped."""
    models = measured_models(ctx)
    rows = {name: _encoded(ctx, name, models) for name in ctx.stage.sets}
    refs = dict.fromkeys(one.measure.judged_by for one in ctx.stage.sets.values())
    judges = [judge(ctx, ref) for ref in refs if ref is not None]
    versions = [model.version for model in (*models, *judges) if model.version is not None]
    parents = {version.ref: version.sha256 for version in versions} | data_parents(ctx)
    inputs = begin(ctx, {name: Table(one.columns, one.digest) for name, one in rows.items()}, parents)
    if left(ctx, models):
        _measure(ctx, models, judges)
    found = estimates(ctx)
    beside = comparison(ctx.stage, models, found)
    _commit(ctx, found, beside)
    storage.write_bytes(storage.join(ctx.folder, "evaluations", "comparison.json"), json.dumps(beside).encode())
    check_gates(ctx, found)
    return finish(ctx, inputs, measured(ctx), {name: one.counts for name, one in rows.items()}, {"comparison": beside})


def _measure(ctx: StageContext[Evaluation], models: Sequence[MeasuredModel], judges: Sequence[MeasuredModel]) -> None:
    """Run the workers, beside engines where there is something to answer."""
    pool = start_pool(ctx, models) if ctx.stage.engines is not None else None
    try:
        config = {"ctx": ctx, "models": models, "judges": judges, "pool": pool}
        launch(ctx.name, work, config, ctx.stage.workers, storage.join(ctx.folder, "ray"))
    finally:
        if pool is not None:
            pool.close()


def _encoded(ctx: StageContext[Evaluation], name: str, models: Sequence[MeasuredModel]) -> SetRows:
    """The rows of a set. UserError: none is left."""
    found = MEASURES[ctx.stage.sets[name].measure.name].encode(ctx, name, models)
    if not found.counts["rows"]:
        raise UserError(
            f"stages.{ctx.name}.sets.{name}.data: no row is left to measure on; raise compute.batch.max_length, "
            f"{ctx.stage.compute.batch.max_length}"
        )
    return found


def _commit(ctx: StageContext[Evaluation], found: Estimates, beside: Mapping[str, Any]) -> None:
    """Commit the figures, and the numbers that they were made of, as the stage's output."""
    if storage.read_manifest(ctx.artifact) is not None:
        return
    with committed_output(ctx, flat(ctx.stage, found)) as folder:
        (folder / FIGURES).write_text(json.dumps(beside, indent=2))
        for name in ctx.stage.sets:
            tables = [_of_model(ctx, name, ref) for ref in ctx.stage.models]
            pq.write_table(pa.concat_tables(tables), folder / f"{name}.parquet")
        (folder / FACTS).write_text(json.dumps(ctx.about() | kind_fields("evaluation"), indent=2, sort_keys=True))


def _of_model(ctx: StageContext[Evaluation], name: str, ref: str) -> pa.Table:
    """A model's numbers of each row of a set, with its name and the row's number."""
    table = pa.table(dict(read_scores(ctx, name, ref)))
    named = {"model": pa.array([ref] * table.num_rows), "row": pa.array(range(table.num_rows))}
    return pa.table(named | {column: table[column] for column in table.column_names})
