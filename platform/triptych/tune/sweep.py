"""A whole sweep: check it, run it as one Ray Tune experiment, and train the best point in full."""

import logging
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray import tune

from triptych import storage
from triptych.errors import RunError, UserError
from triptych.observe.progress import Progress
from triptych.observe.sweeps import SweepView, read_sweep, sweep_name
from triptych.plan import Machine, cluster
from triptych.recipe import Recipe, Sweep, TrainedStage, Values, with_values
from triptych.recipe.spec import dotted
from triptych.stages.run import run_recipe
from triptych.tune.budget import Budget
from triptych.tune.driver import Job, drive
from triptych.tune.feasible import feasible_points
from triptych.tune.parents import copy_parents, parents_of, unfit_reference
from triptych.tune.population import PopulationBased
from triptych.tune.record import Record
from triptych.tune.report_handler import ReportHandler, TrialErrors
from triptych.tune.schedulers import ReplayingScheduler
from triptych.tune.search import Search, assignment_of
from triptych.tune.semaphore import TrialSemaphore
from triptych.tune.shared_base import executor_for

_QUIET = {
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the command's
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # the record is ours
    "RAY_AIR_NEW_OUTPUT": "0",
}
_PBT_KEYS = ("method.lr", "method.dropout")
"""Keys of a stage that PBT may change between steps, beside those below train.optimizer and train.batch."""
_SCRATCH = "tune"
_ON_HEAD = {"node:__internal_head__": 0.001}
"""Resources of a trial's driver: no CPU, which its workers need, but the head, a node that stays. Tune refuses an empty
request."""


def sweep_folder(recipe: Recipe) -> str:
    """URL of the sweep's folder."""
    return storage.join(storage.absolute(recipe.storage.runs), sweep_name(recipe))


def run_sweep(recipe: Recipe, progress: Progress) -> SweepView:
    """Run a recipe's sweep, or continue it: trials that ended are not repeated. Needs a connection to Ray.

    Raises:
        UserError: `check_sweep` refuses the sweep, or none of its points fits the cluster.
        RunError: every trial failed.
    """
    sweep = check_sweep(recipe)
    machine = cluster(ray.nodes())
    fitting = feasible_points(recipe, machine)
    folder = sweep_folder(recipe)
    record = Record(recipe, folder)
    parents = copy_parents(recipe, folder)
    recipes = [with_values(recipe, values) for values in fitting]
    executor = executor_for(recipe, recipes, progress)
    max_concurrent = sweep.concurrency or executor.concurrency(recipes, sweep.stage, machine)
    semaphore = TrialSemaphore(max_concurrent) if sweep.scheduler == "pbt" else None
    job = Job(recipe, folder, str(Path.cwd()), executor, semaphore, parents)
    try:
        _tune(recipe, record, job, machine, max_concurrent)
    finally:
        executor.close()
        if semaphore:
            semaphore.close()
        storage.remove(storage.join(folder, _SCRATCH))
    failed = [trial for trial in record.trials.values() if trial.status == "failed"]
    if failed and len(failed) == record.launched:
        raise RunError(f"every trial failed; {failed[0].name}: {failed[0].reason}")
    return read_sweep(folder)


def check_sweep(recipe: Recipe) -> Sweep:
    """The recipe's sweep.

    Raises:
        UserError: it has none, or one that does not fit its stage, or what trials start from is not there.
        RunError: a stage that trials start from falls short of its gate.
    """
    sweep = recipe.sweep
    if sweep is None:
        raise UserError(f"{recipe.name} has no `sweep:`; add one with stage, space, objective and budget")
    stage = recipe.trained.get(sweep.stage)
    unfit = None if stage is None else unfit_reference(stage.references())
    if stage is None or unfit is not None:
        reason = "trains nothing" if unfit is None else f"has {dotted(unfit.field)} `{unfit.ref}`"
        raise UserError(
            f"sweep.stage: {sweep.stage} is of kind {recipe.stages[sweep.stage].kind} and {reason}; allowed: a stage "
            "that learns from rows of files, by a new method or from a policy that it samples"
        )
    _check_starts(sweep, stage)
    allowed = reported_metrics(stage)
    for objective in sweep.objectives:
        if objective.metric not in allowed:
            without = "" if len(stage.splits()) > 1 else f" (stages.{sweep.stage}.data.heldout would give more)"
            raise UserError(
                f"sweep.objective.metric: stage {sweep.stage} reports no {objective.metric!r}; allowed: "
                f"{', '.join(allowed)}{without}"
            )
    if sweep.scheduler in ("median", "pbt") and stage.train.evaluate_every is None:
        raise UserError(
            f"sweep.scheduler: {sweep.scheduler} judges evaluations within a trial; "
            f"set stages.{sweep.stage}.train.evaluate_every"
        )
    if sweep.scheduler == "pbt":
        _check_population(sweep, stage)
    parents_of(recipe)
    return sweep


def reported_metrics(stage: TrainedStage) -> tuple[str, ...]:
    """Metrics that trials of a stage report, any of which may be an objective: held-out ones, and those of steps."""
    heldout = stage.reports() if len(stage.splits()) > 1 else ()
    return (*(f"heldout_{name}" for name in heldout), *stage.logs())


def train_best(found: SweepView, progress: Progress) -> dict[str, Any]:
    """Run the swept stage in full with the best trial's values, as the recipe's own run, with the sweep as lineage.

    Returns:
        The stage's summary.

    Raises:
        UserError: there is no best trial, or there are several objectives.
    """
    best, sweep = found.best, found.sweep
    if best is None or len(sweep.objectives) > 1:
        raise UserError(f"{found.name} has no one best trial to train: it has none that ended, or several objectives")
    recipe = _winning_recipe(found.recipe, best.values)
    objective = sweep.objectives[0].metric
    origin = {
        "sweep": {"url": found.url, "trial": best.name, "values": best.values, objective: best.metrics[objective]}
    }
    return run_recipe(recipe, progress, sweep.stage, origin)[sweep.stage]


def _winning_recipe(recipe: Recipe, values: Values) -> Recipe:
    """The recipe with a point's values, and with the name that the winner is registered by."""
    assert recipe.sweep is not None
    won = with_values(recipe, values)
    name = recipe.sweep.winner.register_as
    if name is None:
        return won
    stage = won.stages[recipe.sweep.stage].model_copy(update={"register_as": name})
    return won.model_copy(update={"stages": {**won.stages, recipe.sweep.stage: stage}})


def _check_starts(sweep: Sweep, stage: TrainedStage) -> None:
    """UserError if trials would start from different adapters, which are copied for the sweep before it begins."""
    for reference in stage.references():
        field = dotted(("stages", sweep.stage, *reference.field))
        if key := next((key for key in sweep.space if f"{field}.".startswith(f"{key}.")), None):
            raise UserError(f"sweep.space.{key}: all trials start from the same adapters; allowed: other keys")


def _check_population(sweep: Sweep, stage: TrainedStage) -> None:
    """UserError if a trial cannot go on from another's checkpoint, whose weights its own values may shape."""
    if stage.engines is not None:
        raise UserError(
            f"sweep.scheduler: pbt lets a trial go on from another's weights, which {sweep.stage} with engines of its "
            "own does not; allowed: asha, median, none"
        )
    for key in sweep.space:
        below = key.removeprefix(f"stages.{sweep.stage}.")
        if not below.startswith(("train.optimizer.", "train.batch.")) and below not in _PBT_KEYS:
            raise UserError(
                f"sweep.space.{key}: under pbt a trial goes on from another's weights, which {key} may shape; allowed: "
                f"keys below train.optimizer and train.batch, {', '.join(_PBT_KEYS)}"
            )


def _tune(recipe: Recipe, record: Record, job: Job, machine: Machine, max_concurrent: int) -> None:
    """Run Tune until nothing is left to do; with a semaphore, on a population that is begun at once."""
    sweep, semaphore = recipe.sweep, job.semaphore
    assert sweep is not None
    budget = Budget(recipe, record)
    reports = ReportHandler(record, budget, job.executor, semaphore)
    stage = recipe.trained[sweep.stage]
    every = stage.train.evaluate_every
    # The scheduler before the search: its replay may end trials that the search would resume.
    scheduler = None if semaphore else ReplayingScheduler(sweep, reports, every)
    search = Search(recipe, record, budget, machine)
    if semaphore:
        population = [asdict(assignment_of(trial)) for trial in iter(search.next, None)]
        if not population:
            return
        space: dict[str, Any] = {"assignment": tune.grid_search(population)}
        config = tune.TuneConfig(scheduler=PopulationBased(recipe, reports, machine, sweep.pbt.every or every or 1))
    else:
        space = {}
        config = tune.TuneConfig(
            search_alg=search, scheduler=scheduler, num_samples=-1, max_concurrent_trials=max_concurrent
        )
    _fit(job, space, config, budget, reports)
    for trial in record.trials.values():
        if trial.status == "running" and budget.spent:
            reports.end(trial.number, "cut", "the budget was used up")


def _fit(job: Job, space: dict[str, Any], config: tune.TuneConfig, budget: Budget, reports: ReportHandler) -> None:
    storage.remove(storage.join(job.folder, _SCRATCH))
    os.environ.update(_QUIET)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)  # it misses the files of loggers that are switched off
    driver = tune.with_resources(tune.with_parameters(drive, job=job), tune.PlacementGroupFactory([_ON_HEAD]))
    run_config = tune.RunConfig(
        name=_SCRATCH, storage_path=job.folder, stop=budget, callbacks=[TrialErrors(reports)], verbose=0
    )
    tune.Tuner(driver, param_space=space, tune_config=config, run_config=run_config).fit()
