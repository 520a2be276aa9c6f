"""Driver of one trial: a Tune function, in an actor of 0 CPUs, that passes an executor's reports to Tune.

Tune's checkpoint of a trial is a small JSON file with run, step and cost; weights stay in the run's folder.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from triptych.errors import RunError, UserError
from triptych.recipe import Recipe
from triptych.tune.semaphore import TrialSemaphore
from triptych.tune.trial import Assignment, Report, worst

if TYPE_CHECKING:
    from triptych.tune.executor import Executor  # only for types: a driver loads torch with the executor it is given

POINTER = "pointer.json"


@dataclass(frozen=True)
class Job:
    """Arguments that all drivers of a sweep share."""

    recipe: Recipe
    folder: str
    working_dir: str
    """Working directory of the sweep's process, for relative paths of the recipe; Tune gives each driver another."""
    executor: "Executor"
    semaphore: TrialSemaphore | None
    """Limit of concurrent trials; None if Tune limits them."""
    parents: Mapping[str, str]
    """Key of the recipe -> version, in the sweep's registry, that every trial starts from."""


def drive(config: dict[str, Any], job: Job) -> None:
    """Train the trial that `config` assigns, and report each evaluation; returns at its end or its failure."""
    os.chdir(job.working_dir)
    assignment = resumed(Assignment(**config["assignment"]), tune.get_checkpoint())
    if job.semaphore:
        job.semaphore.acquire(config["assignment"]["number"])
    try:
        for report in job.executor.run(assignment.trial(job.recipe, job.folder, job.parents)):
            _report(job.recipe, assignment, report)
    except (UserError, RunError) as error:
        tune.report({"step": assignment.reported, "score": worst(_mode(job.recipe)), "failed": str(error)})


def resumed(assignment: Assignment, checkpoint: tune.Checkpoint | None) -> Assignment:
    """The assignment, updated to where Tune's checkpoint says the trial was paused, if that was in the same run."""
    pointer = read_pointer(checkpoint) if checkpoint else {}
    if pointer.get("run") != assignment.run:
        return assignment
    return dataclasses.replace(assignment, reported=pointer["step"], device_seconds=pointer["device_seconds"])


def read_pointer(checkpoint: tune.Checkpoint) -> dict[str, Any]:
    """Content of Tune's checkpoint of a trial: run, step, device_seconds."""
    with checkpoint.as_directory() as folder:
        pointer: dict[str, Any] = json.loads((Path(folder) / POINTER).read_text())
    return pointer


def _report(recipe: Recipe, assignment: Assignment, report: Report) -> None:
    """Report to Tune; returns when the trial may continue. If it may not, Tune ends this process in the call."""
    assert recipe.sweep is not None
    score = report.metrics.get(recipe.sweep.objectives[0].metric, worst(_mode(recipe)))
    result: dict[str, Any] = {"step": report.step, "score": score if score == score else worst(_mode(recipe))}
    result |= {"report": json.dumps(dataclasses.asdict(report)), "run": assignment.run}
    with tempfile.TemporaryDirectory() as folder:
        pointer = {"run": assignment.run, "step": report.step, "device_seconds": report.device_seconds}
        (Path(folder) / POINTER).write_text(json.dumps(pointer))
        tune.report(result, checkpoint=tune.Checkpoint.from_directory(folder))


def _mode(recipe: Recipe) -> str:
    assert recipe.sweep is not None
    return recipe.sweep.objectives[0].mode
