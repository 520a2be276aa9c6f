"""`triptych run`: all stages of a recipe, or one."""

import json
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.cli.address import Address, addressed, reach, say
from triptych.cli.on_cluster import terminal_width
from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.cluster.client import Client
    from triptych.cluster.submitted import Submitted


@addressed
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    stage: Annotated[str | None, typer.Option(help="Run this stage only.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=value.")] = None,
    cpus: Annotated[int | None, typer.Option(help="Logical CPUs of a cluster started here; all if not given.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus, on a cluster started here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the stages' summaries as JSON.")] = False,
    address: Address = None,
    detach: Annotated[bool, typer.Option("--detach", help="With --address: return once it is submitted.")] = False,
    dev: Annotated[bool, typer.Option("--dev", help="With --address: run this machine's triptych there.")] = False,
    runtime_env: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --address: Ray's runtime environment, a YAML file.")
    ] = None,
) -> None:
    """Run a recipe's stages. The same command again goes on where it stopped; finished stages are not done again.

    With --address the recipe and its local files go to a cluster, and the run is shown until Ctrl-C, which leaves it
    going; `triptych runs` follows, shows and stops it.
    """
    if address is None:
        if detach or dev or runtime_env is not None:
            raise UserError("--detach, --dev and --runtime-env are for a run on a cluster: give --address")
        _run_here(recipe, stage, overrides or [], cpus, metrics_port, as_json)
        return
    if cpus is not None or metrics_port is not None:
        raise UserError("--cpus and --metrics-port are for a cluster started here; the one at --address has its own")
    from triptych.cluster.environment import Environment, read_runtime_env
    from triptych.cluster.submit import submit_run
    from triptych.recipe import load_recipe

    loaded = load_recipe(recipe, overrides or [])
    environment = Environment(read_runtime_env(runtime_env), dev)
    client = reach(address)
    only = () if stage is None else ("--stage", stage)
    submitted = submit_run(client, loaded, only, environment, terminal_width(), say)
    if detach:
        typer.echo(loaded.name)
        return
    follow_run(client, submitted, as_json)


def follow_run(client: "Client", submitted: "Submitted", as_json: bool) -> None:
    """Show a run on a cluster to its end, and its summaries; Ctrl-C leaves it going. Exits as the run did."""
    from triptych.cluster.submit import follow

    name = submitted.run
    signal.signal(signal.SIGINT, _interrupt)
    try:
        answer = follow(client, submitted.job)
    except KeyboardInterrupt:
        say(f"detached; {name} goes on. `triptych runs follow {name}` shows it, `triptych runs stop {name}` ends it")
        raise
    if answer.code:
        raise typer.Exit(answer.code)
    _print(f"{name}: {submitted.url}", json.loads(answer.stdout), as_json)


def _interrupt(*_: object) -> None:
    """For Ctrl-C. asyncio replaces Python's own handler by one that cancels a task, which may be ending just then."""
    raise KeyboardInterrupt


def _run_here(
    recipe: Path, stage: str | None, overrides: list[str], cpus: int | None, metrics_port: int | None, as_json: bool
) -> None:
    from triptych.cluster.ray import connect, leave
    from triptych.observe.progress import ProgressDisplay
    from triptych.recipe import load_recipe
    from triptych.stages.run import run_folder, run_recipe

    loaded = load_recipe(recipe, overrides)
    # Ray and libraries print to stdout, which is the results'.
    with redirect_stdout(sys.stderr), connect(cpus, metrics_port):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray sets its own when it starts
        try:
            with ProgressDisplay() as display:
                summaries = run_recipe(loaded, display.handle, stage)
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from the last checkpoint", err=True)
            leave(130)
    _print(f"{loaded.name}: {run_folder(loaded)}", summaries, as_json)


def _print(title: str, summaries: dict[str, Any], as_json: bool) -> None:
    """The stages' summaries."""
    from rich.console import Console
    from rich.table import Table

    if as_json:
        typer.echo(json.dumps(summaries, indent=2))
        return
    table = Table(title=title)
    for column in ("stage", "registered as", "measured"):
        table.add_column(column)
    for name, found in summaries.items():
        measured = ", ".join(f"{key} {value:.3g}" for key, value in found["metrics"].items())
        table.add_row(name, found["registered"], measured)
    Console().print(table)
