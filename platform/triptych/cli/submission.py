"""Recipes as jobs of a cluster: options, submission, and following a job to its end."""

import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.cli.address import reach, say
from triptych.cli.on_cluster import terminal_width
from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.cluster.client import Client
    from triptych.cluster.submitted import Submitted, Verb

Detach = Annotated[bool, typer.Option("--detach", help="With --address: return once it is submitted.")]
Dev = Annotated[bool, typer.Option("--dev", help="With --address: run this machine's triptych there.")]
RuntimeEnv = Annotated[
    Path | None, typer.Option(metavar="FILE", help="With --address: Ray's runtime environment, a YAML file.")
]
Cpus = Annotated[int | None, typer.Option(help="Logical CPUs of a cluster started here; all if not given.")]
MetricsPort = Annotated[int | None, typer.Option(help="Port for Prometheus, on a cluster started here.")]


def check_place(
    address: str | None,
    *,
    detach: bool,
    dev: bool,
    runtime_env: Path | None,
    cpus: int | None,
    metrics_port: int | None,
) -> None:
    """UserError if options of a cluster elsewhere and of one that is started here are mixed."""
    if address is None and (detach or dev or runtime_env is not None):
        raise UserError("--detach, --dev and --runtime-env are for a cluster elsewhere: give --address")
    if address is not None and (cpus is not None or metrics_port is not None):
        raise UserError("--cpus and --metrics-port are for a cluster started here; the one at --address has its own")


def submit(
    verb: "Verb",
    address: str,
    recipe: Path,
    overrides: list[str],
    arguments: tuple[str, ...],
    *,
    dev: bool,
    runtime_env: Path | None,
) -> "tuple[Client, Submitted]":
    """Submit a recipe to the cluster.

    Args:
        verb: command to run there with the recipe.
        overrides: `a.b=value` for each field to override.
        arguments: further command-line arguments of the verb.
        dev: send this machine's triptych.
        runtime_env: file with Ray's runtime environment.
    """
    from triptych.cluster.environment import Environment, read_runtime_env
    from triptych.cluster.submit import submit_recipe
    from triptych.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    environment = Environment(read_runtime_env(runtime_env), dev)
    client = reach(address)
    return client, submit_recipe(client, loaded, verb, arguments, environment, terminal_width(), say)


def outcome(client: "Client", submitted: "Submitted") -> Any:
    """Follow a job to its end and return what its verb printed as JSON; exit as the verb did if it failed.

    Ctrl-C detaches: the job goes on.
    """
    from triptych.cluster.submit import follow_job

    name = submitted.run
    signal.signal(signal.SIGINT, _interrupt)
    try:
        result = follow_job(client, submitted.job)
    except KeyboardInterrupt:
        say(f"detached; {name} goes on. `triptych runs follow {name}` shows it, `triptych runs stop {name}` ends it")
        raise
    if result.code:
        raise typer.Exit(result.code)
    return json.loads(result.stdout)


def _interrupt(*_: object) -> None:
    """Handler of Ctrl-C: asyncio's own would cancel a task, which may just be ending, and the signal would be lost."""
    raise KeyboardInterrupt
