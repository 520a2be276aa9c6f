"""The driver of one trial: a Tune function in an actor of 0 CPUs that passes an executor's reports on.

Tune's checkpoint of a trial is a small JSON file that says where the trial stands; weights stay in the run's folder.
"""

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from triptych.errors import RunError, UserError
from triptych.recipe import Recipe
from triptych.tune.semaphore import TrialSemaphore
from triptych.tune.trial import Assignment, Report, worst

if TYPE_CHECKING:
    from triptych.tune.executor import Executor  # what it needs, as torch, a driver loads with the executor it is given

POINTER = "pointer.json"


@dataclass(frozen=True)
class Job:
    """What every driver of a sweep is given."""

    recipe: Recipe
    folder: str
    working_dir: str
    """Of the sweep's process: what relative paths of the recipe start from. Tune gives each driver another."""
    executor: "Executor"
    semaphore: TrialSemaphore | None
    """Limit of concurrent trials; None if Tune limits them."""


def drive(config: dict[str, Any], job: Job) -> None:
    """Train the trial that `config` assigns, and report each evaluation; returns at its end or its failure."""
    os.chdir(job.working_dir)
    assignment = standing(Assignment(**config["assignment"]), tune.get_checkpoint())
    if job.semaphore:
        job.semaphore.acquire(config["assignment"]["number"])
    try:
        for report in job.executor.run(assignment.trial(job.recipe, job.folder)):
            _pass_on(job.recipe, assignment, report)
    except (UserError, RunError) as error:
        tune.report({"step": assignment.reported, "score": worst(_mode(job.recipe)), "failed": str(error)})


def standing(assignment: Assignment, checkpoint: tune.Checkpoint | None) -> Assignment:
    """The assignment brought up to where the trial was paused, if it was in the same run."""
    pointer = read_pointer(checkpoint) if checkpoint else {}
    if pointer.get("run") != assignment.run:
        return assignment
    return dataclasses.replace(assignment, reported=pointer["step"], device_seconds=pointer["device_seconds"])


def read_pointer(checkpoint: tune.Checkpoint) -> dict[str, Any]:
    """Where a trial stood: run, step, device_seconds."""
    with checkpoint.as_directory() as folder:
        pointer: dict[str, Any] = json.loads((Path(folder) / POINTER).read_text())
    return pointer


def _pass_on(recipe: Recipe, assignment: Assignment, report: Report) -> None:
    """Returns when the trial may go on; where it may not, this process ends here."""
    assert recipe.sweep is not None
    score = report.metrics.get(recipe.sweep.objectives[0].metric, worst(_mode(recipe)))
    told: dict[str, Any] = {"step": report.step, "score": score if score == score else worst(_mode(recipe))}
    told |= {"report": json.dumps(dataclasses.asdict(report)), "run": assignment.run}
    with tempfile.TemporaryDirectory() as folder:
        pointer = {"run": assignment.run, "step": report.step, "device_seconds": report.device_seconds}
        (Path(folder) / POINTER).write_text(json.dumps(pointer))
        tune.report(told, checkpoint=tune.Checkpoint.from_directory(folder))


def _mode(recipe: Recipe) -> str:
    assert recipe.sweep is not None
    return recipe.sweep.objectives[0].mode
