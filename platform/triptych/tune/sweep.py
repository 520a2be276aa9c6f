"""A whole sweep: one run of Ray Tune whose trials are drivers of Ray Train runs."""

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
from triptych.recipe import Recipe, Sweep, with_values
from triptych.tune.budget import Budget
from triptych.tune.driver import Job, drive
from triptych.tune.executor import Executor
from triptych.tune.feasible import feasible_points
from triptych.tune.metrics import reported_metrics
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
_SCRATCH = "tune"
_ON_HEAD = {"node:__internal_head__": 0.001}
"""What a trial's driver asks for: no CPU, which its workers need, and a node that does not go away. Not nothing,
which Tune refuses."""


def sweep_folder(recipe: Recipe) -> str:
    """URL of the sweep's folder."""
    return storage.join(storage.absolute(recipe.storage.runs), sweep_name(recipe))


def run_sweep(recipe: Recipe, progress: Progress) -> SweepView:
    """Run a recipe's sweep, or go on with it: trials that ended are not repeated. Needs a connection to Ray.

    Raises:
        UserError: the sweep cannot be as it is written, or none of its points fits the cluster.
        RunError: every trial failed.
    """
    sweep = check_sweep(recipe)
    machine = cluster(ray.nodes())
    fitting = feasible_points(recipe, machine)
    folder = sweep_folder(recipe)
    record = Record(recipe, folder)
    recipes = [with_values(recipe, values) for values in fitting]
    executor = executor_for(recipe, recipes, progress)
    max_concurrent = sweep.concurrency or executor.concurrency(recipes, sweep.stage, machine)
    semaphore = TrialSemaphore(max_concurrent) if sweep.scheduler == "pbt" else None
    try:
        _tune(recipe, sweep, record, executor, semaphore, machine, max_concurrent)
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
    """The recipe's sweep. UserError where it has none, or one that its stage cannot do."""
    sweep = recipe.sweep
    if sweep is None:
        raise UserError(f"{recipe.name} has no `sweep:`; add one with stage, space, objective and budget")
    stage = recipe.trained.get(sweep.stage)
    if stage is None or stage.references():
        raise UserError(
            f"sweep.stage: {sweep.stage} is of kind {recipe.stages[sweep.stage].kind} and starts from other stages; "
            "allowed: a stage that learns from rows of files"
        )
    allowed = reported_metrics(stage)
    for objective in sweep.objectives:
        if objective.metric not in allowed:
            without = "" if stage.data.heldout else f" (stages.{sweep.stage}.data.heldout would give more)"
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
        _check_population(sweep)
    return sweep


def _check_population(sweep: Sweep) -> None:
    """UserError where weights of one point cannot be those of another."""
    for key in sweep.space:
        below = key.removeprefix(f"stages.{sweep.stage}.")
        if not below.startswith(("train.optimizer.", "train.batch.")) and below not in _PBT_KEYS:
            raise UserError(
                f"sweep.space.{key}: under pbt a trial goes on from another's weights, which {key} may shape; allowed: "
                f"keys below train.optimizer and train.batch, {', '.join(_PBT_KEYS)}"
            )


_PBT_KEYS = ("method.lr", "method.dropout")


def _tune(
    recipe: Recipe,
    sweep: Sweep,
    record: Record,
    executor: Executor,
    semaphore: TrialSemaphore | None,
    machine: Machine,
    max_concurrent: int,
) -> None:
    """Run Tune until nothing is left to do; with a `semaphore`, on a population that is begun at once."""
    budget = Budget(recipe, record)
    reports = ReportHandler(record, budget, executor, semaphore)
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
    _fit(Job(recipe, record.url, str(Path.cwd()), executor, semaphore), space, config, budget, reports)
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
