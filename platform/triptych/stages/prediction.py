"""What the plan says of a stage is written down before it begins, and beside it afterwards what it came to."""

import json
from dataclasses import asdict
from typing import Any

from triptych import storage
from triptych.models.sizes import has_known_sizes
from triptych.observe.log import read_metrics
from triptych.observe.planned import FILE, actual_figures
from triptych.plan import Machine, estimate, grown, machine_kind, profile_here, worker_parts
from triptych.plan.amounts import total
from triptych.recipe.method import names_of
from triptych.recipe.work_shape import MicroBatch
from triptych.stages.context import StageContext

ALLOCATOR = "allocator"
"""The part by which records of earlier runs correct a prediction."""
BEFORE = "before_data"
"""In `plan.json`, beside `predicted`: what was predicted of the recipe alone."""


def predict(ctx: StageContext[Any], machine: Machine) -> None:
    """Write `plan.json`, once. Bases of families whose sizes are not known have no plan.

    Raises:
        UserError: the machine cannot hold the stage.
    """
    url = storage.join(ctx.folder, FILE)
    if not storage.exists(url) and has_known_sizes(ctx.recipe.model):
        _write(url, {"predicted": _predicted(ctx, machine, None)})


def predict_of_data(ctx: StageContext[Any], batch: MicroBatch, machine: Machine) -> None:
    """Predict a stage anew, once, now that its data have been read; the plan of the recipe alone stays beside it.

    Raises:
        UserError: the machine cannot hold the stage.
    """
    url = storage.join(ctx.folder, FILE)
    plan: dict[str, Any] = json.loads(storage.read_bytes(url)) if storage.exists(url) else {BEFORE: None}
    if BEFORE not in plan:
        predicted = _predicted(ctx, machine, batch)
        _write(url, plan | {BEFORE: plan["predicted"], "predicted": predicted, "batch": asdict(batch)})


def _predicted(ctx: StageContext[Any], machine: Machine, batch: MicroBatch | None) -> dict[str, Any]:
    settled = ctx.recipe.model_copy(update={"stages": {**ctx.recipe.stages, ctx.name: ctx.stage}})
    found = estimate(
        settled,
        machine=machine,
        stage=ctx.name,
        profile=profile_here(ctx.registry().calibrations()),
        batches={} if batch is None else {ctx.name: batch},
    ).stages[ctx.name]
    parts, stage = worker_parts(found), ctx.stage
    return {
        "machine": machine_kind(machine),
        "kind": stage.kind,
        "method": names_of(stage.roles(settled.stages)[0].method),
        "strategy": found.strategy,
        "dtype": ctx.recipe.model.dtype,
        "peak_bytes": total(parts.values()).as_dict(),
        "parts": {name: amount.expected for name, amount in parts.items()},
        "capacity_bytes": min(device.capacity for device in found.devices.values()),
        "grown_bytes": grown({name: amount for name, amount in parts.items() if name != ALLOCATOR}).expected,
        "tokens_per_second": found.tokens_per_second,
    }


def settle(ctx: StageContext[Any]) -> None:
    """Put the actual figures of a stage that ended beside its prediction, and give both to the registry, once."""
    url = storage.join(ctx.folder, FILE)
    if not storage.exists(url):
        return
    plan: dict[str, Any] = json.loads(storage.read_bytes(url))
    actual = actual_figures(read_metrics(ctx.folder))
    if "actual" in plan or not actual:
        return
    plan.pop("error", None)
    _write(url, plan | {"actual": actual})
    predicted = plan["predicted"]
    record = {key: predicted[key] for key in ("machine", "kind", "method", "strategy", "dtype")}
    record |= {"predicted": predicted["grown_bytes"], "actual": actual.get("grown_bytes", 0.0)}
    speed = {"predicted": predicted["tokens_per_second"], "actual": actual.get("tokens_per_second")}
    ctx.registry().add_calibration(record | {"tokens_per_second": speed, "run": ctx.run, "stage": ctx.name})


def fail(ctx: StageContext[Any], error: Exception) -> None:
    """Put down beside the prediction what ended the stage; `plan --explain-oom` reads it."""
    url = storage.join(ctx.folder, FILE)
    if storage.exists(url):
        plan = json.loads(storage.read_bytes(url))
        _write(url, plan | {"error": f"{type(error).__name__}: {error}"})


def _write(url: str, content: dict[str, Any]) -> None:
    storage.write_bytes(url, json.dumps(content, indent=2).encode())
