"""A whole recipe: every stage as soon as the stages it waits for are done and the cluster has room for it."""

import dataclasses
import logging
import queue
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from pkgutil import resolve_name
from typing import Any

import ray

from triptych import storage
from triptych.errors import UserError
from triptych.measure import traced
from triptych.models.base import fingerprint, resolve_base
from triptych.models.sizes import has_known_sizes
from triptych.observe.progress import Progress
from triptych.observe.trackers import check_trackers
from triptych.plan import Machine, cluster, estimate, place, profile_here, requests, with_choice
from triptych.plan.placement import pack
from triptych.plan.processor import cpu_flags, emulates_bfloat16
from triptych.recipe import Recipe, dump_recipe, ready, stage_order
from triptych.registry import registry_url
from triptych.stages.artifact import summary
from triptych.stages.context import StageContext
from triptych.stages.prediction import fail, predict, predict_of_data, settle
from triptych.stages.preflight import check_run
from triptych.stages.versions import check_versions, with_versions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ended:
    """A stage's end: what it raised, or None."""

    stage: str
    error: Exception | None


def run_recipe(
    recipe: Recipe, progress: Progress, only: str | None = None, origin: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Run the stages that are not done yet, side by side where the cluster has room; every stage's summary.

    Needs a connection to Ray. A stage that fails lets those already running end, and is then raised. `origin`: what
    the lineage of all that is registered says beside its inputs.

    Raises:
        UserError: a stage can never be placed, `only` waits for a stage that is not done, or a tracker cannot be used.
        RunError: a stage failed.
    """
    check_trackers(recipe)
    recipe = with_versions(recipe)
    contexts = {name: stage_context(recipe, name, progress) for name in stage_order(recipe)}
    run = next(iter(contexts.values())).run
    done = [name for name in contexts if summary(run, name) is not None]
    wanted = _wanted(recipe, only, done)
    warn_of_emulation(recipe, set(wanted) - set(done), cpu_flags())
    machine = cluster(ray.nodes())
    for name in wanted:
        if name not in done:
            place(recipe, machine, name)
            contexts[name] = dataclasses.replace(contexts[name], origin=dict(origin or {}))
            if name in recipe.trained:
                contexts[name] = chosen(contexts[name], machine)
                predict(contexts[name], machine)
                contexts[name] = dataclasses.replace(contexts[name], on_data=partial(predict_of_data, machine=machine))
            elif has_known_sizes(recipe.model):
                estimate(recipe, machine=machine, stage=name)  # refuses what the machine cannot hold
    storage.write_bytes(storage.join(run, "recipe.yaml"), dump_recipe(recipe).encode())

    ended: queue.Queue[Ended] = queue.Queue()
    running: list[str] = []
    failure: Exception | None = None
    while True:
        for name in ready(recipe, done, running):
            if failure is None and name in wanted and _fits(recipe, machine, [*running, name]):
                running.append(name)
                # A daemon thread, so that Ctrl-C need not wait for it.
                threading.Thread(target=_run_in_thread, args=(contexts[name], ended), daemon=True).start()
        if not running:
            break
        end = ended.get()
        running.remove(end.stage)
        if end.error is None:
            done.append(end.stage)
        else:
            failure = failure or end.error
    if failure is not None:
        raise failure
    return {name: found for name in wanted if (found := summary(run, name)) is not None}


def check_recipe(recipe: Recipe, only: str | None = None) -> None:
    """Refuse a recipe before anything is started or written, for what any stage that is left would refuse.

    Raises:
        UserError: of a tracker, the base, a method on it, a registered version, a tokenizer, or rows; or `only` waits
            for another stage.
    """
    check_trackers(recipe)
    recipe = with_versions(recipe)
    done = [name for name in stage_order(recipe) if summary(run_folder(recipe), name) is not None]
    left = [name for name in _wanted(recipe, only, done) if name not in done]
    if left:
        base = resolve_base(recipe.model)
        check_versions(recipe, left, base)
        check_run(recipe, left, base)


def run_stage(ctx: StageContext[Any]) -> None:
    """Run one stage to its registered output, on this driver."""
    resolve_name(ctx.stage.runner)(ctx)


def run_folder(recipe: Recipe) -> str:
    """URL of the run's folder; a local one is absolute, since workers have another working directory."""
    return storage.join(storage.absolute(recipe.storage.runs), recipe.name)


def stage_context(recipe: Recipe, name: str, progress: Progress) -> StageContext[Any]:
    """What a stage of a run is given."""
    runs = storage.absolute(recipe.storage.runs)
    base = resolve_base(recipe.model)
    return StageContext(
        recipe=recipe,
        name=name,
        stage=recipe.stages[name],
        run=run_folder(recipe),
        base_dir=base,
        base_fingerprint=fingerprint(base, recipe.model.chat_template),
        registry_url=registry_url(recipe),
        artifacts=recipe.storage.artifacts or storage.join(runs, "artifacts"),
        progress=progress,
    )


def chosen(ctx: StageContext[Any], machine: Machine) -> StageContext[Any]:
    """`auto` replaced by the fastest that the machine has room for."""
    profile = profile_here(ctx.registry().calibrations())
    stage = with_choice(ctx.recipe, ctx.name, machine, profile=profile, exact=True, trace=traced)
    return dataclasses.replace(ctx, stage=stage)


def _wanted(recipe: Recipe, only: str | None, done: list[str]) -> list[str]:
    if only is None:
        return stage_order(recipe)
    if only not in recipe.stages:
        raise UserError(f"--stage {only}: no such stage; allowed: {', '.join(recipe.stages)}")
    missing = [parent for parent in recipe.stages[only].parents() if parent not in done]
    if missing:
        raise UserError(f"--stage {only} waits for {', '.join(missing)}: run those first, or leave out --stage")
    return [only]


def warn_of_emulation(recipe: Recipe, names: Collection[str], flags: Collection[str]) -> None:
    """Warn where stages train in bfloat16 on a processor without its instructions; `flags`: those it has."""
    groups = {name: stage.workers for name, stage in recipe.stages.items() if name in names}
    on_cpu = [name for name, workers in groups.items() if workers is not None and not workers.gpus]
    if on_cpu and recipe.model.dtype == "bfloat16" and emulates_bfloat16(flags):
        log.warning(
            "this processor has no instructions for bfloat16 and emulates it, many times slower: "
            "stop, and run with --set model.dtype=float32 (stages: %s)",
            ", ".join(on_cpu),
        )


def _fits(recipe: Recipe, machine: Machine, names: list[str]) -> bool:
    """Whether the cluster has room for these stages at once."""
    return pack([request for name in names for request in requests(name, recipe.stages[name])], machine) is not None


def _run_in_thread(ctx: StageContext[Any], ended: "queue.Queue[Ended]") -> None:
    error: Exception | None = None
    try:
        run_stage(ctx)
        settle(ctx)
    except Exception as raised:  # noqa: BLE001 - the driver raises it
        error = raised
        fail(ctx, raised)
    ended.put(Ended(ctx.name, error))
