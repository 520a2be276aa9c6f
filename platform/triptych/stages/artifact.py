"""Outputs of stages: committed in the stage's folder, registered once, and found by the stages that read them.

The registry's kind of an output is the stage's `output`: a policy, a reward model, a classifier, a whole model or a
data set.
"""

import dataclasses
import itertools
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from transformers import PreTrainedModel

from triptych import __version__, storage
from triptych.artifact_kinds import kind_fields
from triptych.data.end_tokens import end_tokens
from triptych.data.hub import commits_of, pinned
from triptych.errors import RunError, UserError
from triptych.forward.export import adapter_of
from triptych.methods.adalora import ranks
from triptych.methods.freeze import ROWS as TRAINED_ROWS
from triptych.methods.freeze import whole
from triptych.models.adapter import Adapter, save_adapter
from triptych.models.adapter_effect import Probes, write_probes
from triptych.models.full import save_model, write_ends
from triptych.models.identity import difference
from triptych.models.peft_files import ADAPTER_WEIGHTS, FACTS
from triptych.models.stored import as_saved
from triptych.recipe import Origin, Source, StageBase
from triptych.recipe.matrix import AdaLora
from triptych.recipe.method import Freeze, Full, parts_of, trains_base
from triptych.registry import AdapterVersion, Registry
from triptych.stages.adapter_probes import probes_of
from triptych.stages.context import StageContext
from triptych.stages.models import tokenizer_of
from triptych.stages.stored_adapter import StoredAdapter
from triptych.train.learners import RoleLearner

METRICS = "metrics.json"
"""Held-out metrics, beside the output that they were measured on."""
ROWS = "rows.parquet"
"""Rows of a data set, as records in the shape that a source's file has."""
COMMITS = "hub.json"
"""Commits of the hub's data sets that the stage reads, in its folder."""


log = logging.getLogger(__name__)


@contextmanager
def committed_output(ctx: StageContext[Any], metrics: Mapping[str, float]) -> Iterator[Path]:
    """The folder of the stage's output, committed with its held-out metrics at the end of the block.

    A metric that is no finite number is left out, with a warning: the output is there all the same.
    """
    known = _finite(metrics)
    if missing := sorted(metrics.keys() - known.keys()):
        log.warning("stage %s: left out, for they are no finite numbers: %s", ctx.name, ", ".join(missing))
    with storage.committed(ctx.artifact) as folder:
        yield folder
        (folder / METRICS).write_text(json.dumps(known))


def commit_adapter(
    ctx: StageContext[Any], adapter: Adapter, metrics: Mapping[str, float], probes: Probes | None = None
) -> None:
    """Commit an adapter as the stage's output. Rank 0 calls it; `probes`: of a policy, as `probes_of` gives them."""
    with committed_output(ctx, metrics) as folder:
        save_adapter(folder, adapter, ctx.about())
        if probes is not None and (folder / ADAPTER_WEIGHTS).is_file():  # a hybrid has a file for each part
            write_probes(folder, probes)


def commit_role(
    ctx: StageContext[Any],
    learner: RoleLearner,
    role: str,
    metrics: Mapping[str, float],
    labels: Sequence[str] = (),
    folder: Path | None = None,
) -> None:
    """Commit what the stage's own method trained: an adapter, or a whole model. Every rank calls it; rank 0 writes.

    `labels`: the classes of a classifier, in the order of its head. `folder`: of the whole model that it was trained
    from; None: the base's.
    """
    method = ctx.stage.method
    probes = probes_of(ctx, learner, role) if ctx.stage.output == "policy" and not trains_base(method) else None
    weights = learner.weights(role)
    if learner.group.rank != 0:
        return
    write_ranks(ctx, {role: weights})
    if trains_base(method):
        _commit_model(ctx, learner.model.lm, folder or ctx.base_dir, weights, metrics)
    else:
        adapter = adapter_of(method, weights, ctx.stage.output)
        commit_adapter(ctx, dataclasses.replace(adapter, labels=tuple(labels)), metrics, probes)


def commit_rows(ctx: StageContext[Any], blocks: Iterable[pa.Table], metrics: Mapping[str, float]) -> None:
    """Commit the rows of all blocks, in order, as the stage's output: a data set.

    The blocks have one schema. Nothing is committed where the iterator raises.

    Raises:
        UserError: there is no row.
    """
    blocks = iter(blocks)
    first = next(blocks, None)
    with committed_output(ctx, metrics) as folder:
        rows = 0 if first is None else _write_parquet(folder / ROWS, first, blocks)
        if rows == 0:
            raise UserError(f"stages.{ctx.name}: no row is left for its data set")
        facts = ctx.about() | kind_fields("dataset") | {"rows": rows}
        (folder / FACTS).write_text(json.dumps(facts, indent=2, sort_keys=True))


def write_ranks(ctx: StageContext[Any], weights: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Write the ranks that AdaLoRA left, by role, for the report; nothing for another method."""
    if any(isinstance(part, AdaLora) for part in parts_of(ctx.stage.method)):
        found = {role: ranks(own) for role, own in weights.items()}
        storage.write_bytes(storage.join(ctx.folder, "ranks.json"), json.dumps(found).encode())


def measured(ctx: StageContext[Any]) -> dict[str, float]:
    """The held-out metrics that were committed with the stage's output; earlier versions kept NaN among them."""
    return _finite(json.loads(storage.read_bytes(storage.join(ctx.artifact, METRICS))))


def finish(
    ctx: StageContext[Any],
    inputs: Mapping[str, Any],
    metrics: Mapping[str, float],
    data: Mapping[str, Mapping[str, int]] | None = None,
    more: Mapping[str, Any] | None = None,
) -> AdapterVersion:
    """Register the stage's output, once, and write its summary.

    `data`: what became of the rows, by split. `more`: further fields of the summary.
    """
    registry = ctx.registry()
    digest = storage.verify(ctx.artifact).digest
    known = [version for version in _versions(registry, ctx.adapter_name) if version.sha256 == digest]
    version = known[0] if known else _register(ctx, registry, inputs, metrics)
    content = {"kind": ctx.stage.kind, "metrics": dict(metrics), "registered": version.ref, "sha256": version.sha256}
    content |= {"data": {split: dict(counts) for split, counts in data.items()}} if data else {}
    content |= more or {}
    storage.write_bytes(storage.join(ctx.folder, "summary.json"), json.dumps(content, indent=2).encode())
    return version


def summary(run: str, stage: str) -> dict[str, Any] | None:
    """What a finished stage wrote; None before its end."""
    url = storage.join(run, "stages", stage, "summary.json")
    if not storage.exists(url):
        return None
    content: dict[str, Any] = json.loads(storage.read_bytes(url))
    return content


def check_gate(name: str, stage: StageBase, metrics: Mapping[str, float]) -> None:
    """RunError where a stage's held-out metrics fall short of what its recipe asks for."""
    if reason := stage.shortfall(metrics):
        raise RunError(f"stage {name}: {reason}: its model is not registered, and PPO may not learn from it")


def parent(ctx: StageContext[Any], ref: str, kind: str) -> StoredAdapter:
    """The adapter that `ref` names: a stage of this run, or `name@version` in the registry.

    Raises:
        UserError: it is of another kind or sits on another base.
    """
    version = registered(ctx, ref)
    check_same_base(version, ctx.base_fingerprint, ctx.recipe.model.base)
    storage.verify(version.url)
    return StoredAdapter.read(version, kind)


def check_same_base(version: AdapterVersion, fingerprint: str, base: str) -> None:
    """UserError where a version was trained on another base than the one called `base`, of this fingerprint."""
    if reason := difference(version.base_fingerprint, fingerprint):
        raise UserError(f"{version.ref} was trained on {version.base}, {reason} than {base}")


def registered(ctx: StageContext[Any], ref: str) -> AdapterVersion:
    """The registered output that `ref` names: a finished stage of this run, or `name@version` in the registry."""
    done = summary(ctx.run, ref) if ref in ctx.recipe.stages else None
    return ctx.registry().get(done["registered"] if done else ref)


def sources(ctx: StageContext[Any]) -> dict[str, Source]:
    """The sources of the stage's data, by split; another stage's data set is there as its file of rows.

    A data set of the hub is there at the commit that it had when the stage was begun.

    Raises:
        RunError: a data set is not what was registered.
        UserError: the hub has no such data set.
    """
    return {split: source.changed(partial(_placed, ctx)) for split, source in ctx.stage.splits().items()}


def data_parents(ctx: StageContext[Any]) -> dict[str, str]:
    """Digests of the data sets that the stage's data come from, by their versions' refs."""
    origins = [origin for source in ctx.stage.splits().values() for _, origin in source.origins()]
    named = dict.fromkeys(origin.stage for origin in origins)
    versions = [registered(ctx, name) for name in named if name is not None]
    return {version.ref: version.sha256 for version in versions}


def _placed(ctx: StageContext[Any], origin: Origin) -> dict[str, Any]:
    if origin.stage is None:
        return pinned(origin, storage.join(ctx.folder, COMMITS))
    folder = ctx.registry().fetch(registered(ctx, origin.stage).ref)
    return {"path": str(folder / ROWS), "stage": None}


def _write_parquet(path: Path, first: pa.Table, others: Iterable[pa.Table]) -> int:
    """Write blocks of one schema; the number of their rows."""
    rows = 0
    with pq.ParquetWriter(path, first.schema) as writer:
        for block in itertools.chain([first], others):
            writer.write_table(block)
            rows += block.num_rows
    return rows


def _finite(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def whole_weights(
    method: Freeze | Full, model: PreTrainedModel, base: Path, trained: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """All weights of the model in `base`, by the names of its files, with what was trained of the loaded `model`."""
    rows = {name: tensor for name, tensor in trained.items() if name.endswith(TRAINED_ROWS)}
    parameters = {name: tensor for name, tensor in trained.items() if name not in rows}
    return whole(method, base, as_saved(model, parameters, base) | rows)


def _commit_model(
    ctx: StageContext[Any],
    model: PreTrainedModel,
    base: Path,
    trained: Mapping[str, Tensor],
    metrics: Mapping[str, float],
) -> None:
    """Commit the model in `base` with its trained weights as the stage's output; it stops where answers ended."""
    method: Freeze | Full = ctx.stage.method
    with committed_output(ctx, metrics) as folder:
        weights = whole_weights(method, model, base, trained)
        save_model(folder, base, weights, getattr(torch, ctx.recipe.model.dtype), ctx.about())
        write_ends(folder, end_tokens(ctx.base_dir, tokenizer_of(ctx)))


def _register(
    ctx: StageContext[Any], registry: Registry, inputs: Mapping[str, Any], metrics: Mapping[str, float]
) -> AdapterVersion:
    lineage = dict(inputs) | {"run": ctx.run, "stage_name": ctx.name, "code": __version__}
    lineage |= {**ctx.about(), **ctx.origin}
    if commits := commits_of(storage.join(ctx.folder, COMMITS)):
        lineage["hub"] = commits
    return registry.register(
        ctx.adapter_name,
        ctx.artifact,
        kind=ctx.stage.output,
        base=ctx.recipe.model.base,
        base_fingerprint=ctx.base_fingerprint,
        lineage=lineage,
        metrics=dict(metrics),
    )


def _versions(registry: Registry, name: str) -> list[AdapterVersion]:
    known = {adapter.name for adapter in registry.adapters()}
    return list(registry.versions(name)) if name in known else []
