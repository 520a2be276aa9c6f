"""Submission of a recipe or a verb to a cluster as a Ray job, with all checks that can be made first."""

import json
import re
import sys
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray.dashboard.modules.job.pydantic_models import JobDetails

import triptych
from triptych.cluster.bundle import Bundle, archive, bundle_recipe, readable
from triptych.cluster.client import Client
from triptych.cluster.environment import Environment, is_from_wheel
from triptych.cluster.remote_call import ENTRYPOINT, MARK, RECIPE, CallResult, RemoteCall, parse_result, recipe_format
from triptych.cluster.submitted import Submitted, Verb, find, runs_of
from triptych.errors import RunError, UserError
from triptych.observe.sweeps import sweep_name
from triptych.recipe import Recipe

Say = Callable[[str], None]
"""Shows a line about what is going on."""

_RAYS_OWN = re.compile(r"Running entrypoint for job |.* -- Runtime env is setting up\.$")


class NoTriptychError(UserError):
    """The cluster has no triptych, or one that is too old for remote calls."""


def submit_recipe(
    client: Client,
    recipe: Recipe,
    verb: Verb,
    arguments: tuple[str, ...],
    environment: Environment,
    width: int,
    say: Say,
) -> Submitted:
    """Start a recipe's run, or its sweep, on the cluster.

    Args:
        arguments: further command-line arguments of the verb.
        width: columns of the terminal that shows its tables.
        say: shows what is going on.

    Raises:
        UserError: it is running already, versions differ too much, a place to write is not one that all nodes see, or
            too much would travel. Nothing was started then.
    """
    check_storage(recipe)
    name = sweep_name(recipe) if verb == "sweep" else recipe.name
    bundle = bundle_recipe(recipe, RemoteCall((verb, RECIPE, "--json", *arguments), width))
    with archive(bundle) as packed:
        before = runs_of(client).get(name, [])
        if before and before[-1].running:
            raise UserError(
                f"{verb} {name} is going on at {client.address}: `triptych runs follow {name}` shows it, "
                f"`triptych runs stop {name}` ends it; the same command again goes on from the last checkpoint"
            )
        place = None if "://" in recipe.storage.runs else recipe.storage.runs
        environment, facts = agree(client, environment, place, say)
        store = "set it to an object store (--set storage.runs=s3://bucket/runs)"
        check_shared("storage.runs", recipe.storage.runs, facts, store)
        sent = f"{len(bundle.files)} files, {readable(bundle.size)}" if bundle.files else "no files"
        say(f"sending the recipe and {sent} ({readable(packed.stat().st_size)} compressed) to {client.address}")
        job = f"triptych-run-{name}-{len(before) + 1}"
        about = {
            "triptych": verb,
            "run": name,
            "runs": recipe.storage.runs,
            "version": triptych.__version__,
            "sends_code": "yes" if environment.sends_code else "no",
        }
        client.submit(job, ENTRYPOINT, environment.resolve(working_dir=packed), about)
    return find(client, name)


def check_storage(recipe: Recipe) -> None:
    """UserError unless every place that the recipe writes to is the same one on all nodes."""
    places = {"runs": recipe.storage.runs, "artifacts": recipe.storage.artifacts or "/"}
    if (recipe.storage.registry or "").startswith("sqlite:"):
        places["registry"] = (recipe.storage.registry or "").removeprefix("sqlite:///")
    for name, place in places.items():
        if place.startswith(("memory:", "file:")) or not ("://" in place or Path(place).is_absolute()):
            raise UserError(
                f"storage.{name}: {place!r} is a place of this machine; on a cluster set an object store or a folder "
                f"that all its nodes share, as --set storage.{name}=s3://bucket/runs or =/mnt/shared/runs"
            )


def check_shared(field: str, place: str, facts: dict[str, Any], instead: str) -> None:
    """UserError if the cluster cannot write to a folder, or its nodes do not share it.

    Args:
        field: recipe or serve-config field that names the folder, for the message.
        place: the folder.
        facts: what `inspect_cluster` found for it.
        instead: advice for the message.
    """
    if facts.get("refused"):
        raise UserError(f"{field}: {place} cannot be written on the cluster: {facts['refused']}")
    if unseen := facts.get("unseen"):
        raise UserError(
            f"{field}: {place} is not one folder for all {facts['nodes']} nodes of the cluster: what the head writes "
            f"is not seen on {', '.join(unseen[:5])}; {instead}, or name a folder that all nodes mount"
        )


def inspect_cluster(client: Client, environment: Environment, path: str | None = None) -> dict[str, Any]:
    """Versions, nodes and resources of the cluster, as `cluster_facts` finds them on its head.

    Args:
        path: folder to look for on every node.
    """
    result, _ = send(client, Bundle(RemoteCall(path=path)), environment)
    facts: dict[str, Any] = json.loads(result.stdout)
    return facts


def agree(client: Client, environment: Environment, path: str | None, say: Say) -> tuple[Environment, dict[str, Any]]:
    """Inspect the cluster, and choose an environment in which it reads recipes as this machine does.

    A triptych that was installed here as a package travels to a cluster that has another version, or none. A working
    tree travels only if the environment says so already (`--dev`).

    Returns:
        The environment, and the facts of `inspect_cluster`.

    Raises:
        UserError: it is a working tree, and the cluster has no triptych, or one with other fields of recipes.
    """
    mine = replace(environment, sends_code=True)
    try:
        facts = inspect_cluster(client, environment, path)
    except NoTriptychError:
        if not is_from_wheel():
            raise
        say(f"{client.address} has no triptych; this machine's {triptych.__version__} travels")
        return mine, inspect_cluster(client, mine, path)
    if facts["triptych"] != triptych.__version__ and is_from_wheel():
        say(f"{_both(client, facts)}, which travels")
        return mine, facts
    check_versions(client, facts, say)
    return environment, facts


def check_versions(client: Client, facts: dict[str, Any], say: Say) -> None:
    """UserError if this machine and the cluster read recipes differently; a line of `say` if only versions differ."""
    if facts["format"] != recipe_format():
        raise UserError(
            f"{_both(client, facts)}, and their recipes have different fields: install the same version here and "
            "there, or send this machine's code with --dev"
        )
    if facts["triptych"] != triptych.__version__:
        say(f"{_both(client, facts)}; recipes mean the same to both, and the cluster's version runs")


def _both(client: Client, facts: dict[str, Any]) -> str:
    return f"{client.address} has triptych {facts['triptych']}, this machine {triptych.__version__}"


def send(client: Client, bundle: Bundle, environment: Environment) -> tuple[CallResult, str]:
    """Run a remote call to its end, and remove its job from the cluster's list.

    Returns:
        The result, and all that the job printed.

    Raises:
        NoTriptychError: the cluster has no triptych, or one that is too old.
        RunError: the job ended without a result.
    """
    job = f"triptych-call-{uuid.uuid4().hex[:12]}"
    with archive(bundle) as packed:
        client.submit(job, ENTRYPOINT, environment.resolve(working_dir=packed), {"triptych": "call"})
    details = client.wait(job)
    output = client.output(job)
    client.forget(job)
    result = parse_result(output)
    if result is None:
        raise _no_result(client, details, output)
    return result, output


def _no_result(client: Client, details: JobDetails, output: str) -> Exception:
    if "No module named" in output and "triptych" in output:
        return NoTriptychError(
            f"{client.address} has no triptych, or one that is too old; this machine has {triptych.__version__}: use "
            "an image with that version, or send this machine's code with --dev"
        )
    last = [line for line in output.split("\n") if _is_told(line)]
    return RunError(f"the job on {client.address} failed: {(last or [details.message or 'no reason given'])[-1]}")


def follow_job(client: Client, job: str) -> CallResult:
    """Show what a job prints on stderr until its end, and return its result. RunError if it ended without one."""

    def show(line: str) -> None:
        if _is_told(line):
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - it is the job's own log

    details = client.follow(job, show)
    result = parse_result(client.output(job))
    if result is None:
        raise RunError(f"it ended as {details.status.value}: {details.message or 'no reason given'}")
    return result


def _is_told(line: str) -> bool:
    """Tell lines for people from marked lines of the result and from Ray's own."""
    return bool(line.strip()) and not line.startswith(MARK) and not _RAYS_OWN.match(line)
