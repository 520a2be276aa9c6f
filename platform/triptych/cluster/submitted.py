"""Runs that were submitted to a cluster; it remembers their jobs until it ends."""

import difflib
from dataclasses import dataclass
from typing import Literal, get_args

from ray.dashboard.modules.job.pydantic_models import JobDetails

from triptych import storage
from triptych.cluster.client import Client, is_running
from triptych.cluster.environment import OURS, Environment
from triptych.errors import UserError

Verb = Literal["run", "sweep"]
"""Commands that can be submitted with a recipe."""


@dataclass(frozen=True)
class Submitted:
    """The job of a run or a sweep, as the cluster remembers it."""

    verb: Verb
    run: str
    """Name of the run's or the sweep's folder."""
    runs: str
    """Its recipe's storage.runs."""
    job: str
    status: str
    running: bool
    started: int
    environment: Environment

    @property
    def url(self) -> str:
        """URL of that folder."""
        return storage.join(self.runs, self.run)


def runs_of(client: Client) -> dict[str, list[Submitted]]:
    """Name of each run and sweep that was submitted to the cluster -> its jobs, the oldest first."""
    found: dict[str, list[Submitted]] = {}
    for job in client.jobs():
        about = job.metadata or {}
        if about.get("triptych") in get_args(Verb):
            found.setdefault(about["run"], []).append(_submitted(job, about))
    return found


def _submitted(job: JobDetails, about: dict[str, str]) -> Submitted:
    kept = {k: v for k, v in (job.runtime_env or {}).items() if k not in OURS and not k.startswith("_")}
    return Submitted(
        verb="sweep" if about["triptych"] == "sweep" else "run",
        run=about["run"],
        runs=about["runs"],
        job=job.submission_id or "",
        status=job.status.value.lower(),
        running=is_running(job),
        started=job.start_time or 0,
        environment=Environment(kept, sends_code=about["sends_code"] == "yes"),
    )


def latest(client: Client) -> Submitted | None:
    """The last run's last job; None where no run was submitted since the cluster started."""
    return max((jobs[-1] for jobs in runs_of(client).values()), key=lambda job: job.started, default=None)


def find(client: Client, name: str) -> Submitted:
    """The last job of a run; UserError where none of that name was submitted since the cluster started."""
    runs = runs_of(client)
    if name in runs:
        return runs[name][-1]
    near = difflib.get_close_matches(name, runs, n=3) or list(runs)[:10]
    there = f"; there is {', '.join(near)}" if near else ", and no other"
    raise UserError(f"no run {name!r} was submitted to {client.address}{there}")
