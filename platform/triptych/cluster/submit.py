"""From a laptop: send a recipe or a verb to a cluster as a Ray job, after all that can be wrong was looked at."""

import difflib
import json
import re
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from ray.dashboard.modules.job.pydantic_models import JobDetails

import triptych
from triptych import storage
from triptych.cluster.bundle import Bundle, archive, bundle_recipe, readable
from triptych.cluster.client import Client, is_running
from triptych.cluster.errands import ENTRYPOINT, MARK, RECIPE, Answer, Errand, heard, recipe_format
from triptych.errors import RunError, UserError
from triptych.recipe import Recipe

Say = Callable[[str], None]
"""Tells the person what is going on."""

_OURS = ("working_dir", "py_modules")
_RAYS_OWN = re.compile(r"Running entrypoint for job |.* -- Runtime env is setting up\.$")


@dataclass(frozen=True)
class Environment:
    """What a job runs in beside the cluster's image."""

    runtime_env: dict[str, Any] = field(default_factory=dict)
    """Ray's own, without `working_dir` and `py_modules`."""
    dev: bool = False
    """This machine's triptych travels, and runs there in place of the image's."""

    def resolve(self, working_dir: Path) -> dict[str, Any]:
        """The whole of Ray's runtime environment."""
        code = {"py_modules": [str(Path(triptych.__file__).parent)]} if self.dev else {}
        return self.runtime_env | {"working_dir": str(working_dir)} | code


def read_runtime_env(path: Path | None) -> dict[str, Any]:
    """A YAML or JSON file of Ray's runtime environment; UserError where it is none, or names what travels anyway."""
    if path is None:
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"--runtime-env {path}: cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"--runtime-env {path}: allowed is a mapping, as `pip: [...]` or `env_vars: {{...}}`")
    for name in _OURS:
        if name in content:
            raise UserError(f"--runtime-env {path}: {name} is not allowed: recipe, data and (--dev) code travel anyway")
    return content


def submit_run(
    client: Client, recipe: Recipe, arguments: tuple[str, ...], environment: Environment, width: int, say: Say
) -> "Submitted":
    """Start a recipe's run on the cluster.

    Raises:
        UserError: the run is going on already, versions differ too much, a place to write is not one that all nodes
            see, or too much would travel. Nothing was started then.
    """
    check_storage(recipe)
    bundle = bundle_recipe(recipe, Errand(("run", RECIPE, "--json", *arguments), width))
    with archive(bundle) as packed:
        before = runs_of(client).get(recipe.name, [])
        if before and before[-1].running:
            raise UserError(
                f"run {recipe.name} is going on at {client.address}: `triptych runs follow {recipe.name}` shows it, "
                f"`triptych runs stop {recipe.name}` ends it; run again then, it goes on from its last checkpoint"
            )
        facts = look(client, environment, None if "://" in recipe.storage.runs else recipe.storage.runs)
        check_versions(client, facts, say)
        _check_nodes(recipe, facts)
        sent = f"{len(bundle.files)} files, {readable(bundle.size)}" if bundle.files else "no files"
        say(f"sending the recipe and {sent} ({readable(packed.stat().st_size)} compressed) to {client.address}")
        job = f"triptych-run-{recipe.name}-{len(before) + 1}"
        about = {
            "triptych": "run",
            "run": recipe.name,
            "runs": recipe.storage.runs,
            "version": triptych.__version__,
            "dev": "yes" if environment.dev else "no",
        }
        client.submit(job, ENTRYPOINT, environment.resolve(packed), about)
    return find(client, recipe.name)


def check_storage(recipe: Recipe) -> None:
    """UserError unless the recipe writes to places that mean the same on every node."""
    places = {"runs": recipe.storage.runs, "artifacts": recipe.storage.artifacts or "/"}
    if (recipe.storage.registry or "").startswith("sqlite:"):
        places["registry"] = (recipe.storage.registry or "").removeprefix("sqlite:///")
    for name, place in places.items():
        if place.startswith(("memory:", "file:")) or not ("://" in place or Path(place).is_absolute()):
            raise UserError(
                f"storage.{name}: {place!r} is a place of this machine; on a cluster set an object store or a folder "
                f"that all its nodes share, as --set storage.{name}=s3://bucket/runs or =/mnt/shared/runs"
            )


def _check_nodes(recipe: Recipe, facts: dict[str, Any]) -> None:
    if facts.get("refused"):
        raise UserError(f"storage.runs: {recipe.storage.runs} cannot be written on the cluster: {facts['refused']}")
    if unseen := facts.get("unseen"):
        raise UserError(
            f"storage.runs: {recipe.storage.runs} is not one folder for all {facts['nodes']} nodes of the cluster: "
            f"what the head writes is not seen on {', '.join(unseen[:5])}; set it to an object store "
            "(--set storage.runs=s3://bucket/runs) or to a folder that all nodes mount"
        )


def look(client: Client, environment: Environment, path: str | None = None) -> dict[str, Any]:
    """Versions, nodes and resources of the cluster; `unseen`: nodes that do not see a folder of the head's."""
    answer, _ = send(client, Bundle(Errand(path=path)), environment)
    facts: dict[str, Any] = json.loads(answer.stdout)
    return facts


def check_versions(client: Client, facts: dict[str, Any], say: Say) -> None:
    """UserError where laptop and cluster read recipes differently; a word where only the version differs."""
    both = f"{client.address} has triptych {facts['triptych']}, this machine {triptych.__version__}"
    if facts["format"] != recipe_format():
        raise UserError(
            f"{both}, and their recipes have different fields: install the same version here and there, or send this "
            "machine's code with --dev"
        )
    if facts["triptych"] != triptych.__version__:
        say(f"{both}; recipes mean the same to both, and the cluster's version runs")


def send(client: Client, bundle: Bundle, environment: Environment) -> tuple[Answer, str]:
    """Run an errand to its end; its answer, and all that its job printed.

    Raises:
        UserError: the cluster has no triptych that knows errands.
        RunError: the job ended without an answer.
    """
    job = f"triptych-errand-{uuid.uuid4().hex[:12]}"
    with archive(bundle) as packed:
        client.submit(job, ENTRYPOINT, environment.resolve(packed), {"triptych": "errand"})
    details = client.wait(job)
    output = client.output(job)
    client.forget(job)
    answer = heard(output)
    if answer is None:
        raise _unanswered(client, details, output)
    return answer, output


def _unanswered(client: Client, details: JobDetails, output: str) -> Exception:
    if "No module named" in output and "triptych" in output:
        return UserError(
            f"{client.address} has no triptych, or one that is too old; this machine has {triptych.__version__}: use "
            "an image with that version, or send this machine's code with --dev"
        )
    last = [line for line in output.split("\n") if _is_told(line)]
    return RunError(f"the job on {client.address} failed: {(last or [details.message or 'no reason given'])[-1]}")


def follow(client: Client, job: str) -> Answer:
    """Show what a run prints on stderr until its end; its answer. RunError where it ended without one."""

    def show(line: str) -> None:
        if _is_told(line):
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - it is the job's own log

    details = client.follow(job, show)
    answer = heard(client.output(job))
    if answer is None:
        raise RunError(f"the run ended as {details.status.value}: {details.message or 'no reason given'}")
    return answer


def _is_told(line: str) -> bool:
    """Whether a line of a job's output is for people."""
    return bool(line.strip()) and not line.startswith(MARK) and not _RAYS_OWN.match(line)


@dataclass(frozen=True)
class Submitted:
    """A run's job, as the cluster remembers it."""

    run: str
    """Name of the run."""
    runs: str
    """Its recipe's storage.runs."""
    job: str
    status: str
    running: bool
    started: int
    environment: Environment

    @property
    def url(self) -> str:
        """URL of the run's folder."""
        return storage.join(self.runs, self.run)


def runs_of(client: Client) -> dict[str, list[Submitted]]:
    """Name of each run that was submitted to the cluster -> its jobs, the oldest first."""
    found: dict[str, list[Submitted]] = {}
    for job in client.jobs():
        about = job.metadata or {}
        if about.get("triptych") == "run":
            found.setdefault(about["run"], []).append(_submitted(job, about))
    return found


def _submitted(job: JobDetails, about: dict[str, str]) -> Submitted:
    kept = {k: v for k, v in (job.runtime_env or {}).items() if k not in _OURS and not k.startswith("_")}
    return Submitted(
        run=about["run"],
        runs=about["runs"],
        job=job.submission_id or "",
        status=job.status.value.lower(),
        running=is_running(job),
        started=job.start_time or 0,
        environment=Environment(kept, dev=about["dev"] == "yes"),
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
