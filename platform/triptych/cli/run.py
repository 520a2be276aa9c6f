"""`triptych run`: all stages of a recipe, or one."""

import json
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Any

import typer

from triptych.cli.address import Address, addressed
from triptych.cli.submission import Cpus, Detach, Dev, MetricsPort, RuntimeEnv, check_place, outcome, submit


@addressed
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    stage: Annotated[str | None, typer.Option(help="Run this stage only.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=value.")] = None,
    cpus: Cpus = None,
    metrics_port: MetricsPort = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the stages' summaries as JSON.")] = False,
    address: Address = None,
    detach: Detach = False,
    dev: Dev = False,
    runtime_env: RuntimeEnv = None,
) -> None:
    """Run a recipe's stages. The same command again goes on where it stopped; finished stages are not done again.

    With --address the recipe and its local files go to a cluster, and the run is shown until Ctrl-C, which leaves it
    going; `triptych runs` follows, shows and stops it.
    """
    check_place(address, detach=detach, dev=dev, runtime_env=runtime_env, cpus=cpus, metrics_port=metrics_port)
    if address is None:
        _run_here(recipe, stage, overrides or [], cpus, metrics_port, as_json)
        return
    only = () if stage is None else ("--stage", stage)
    client, submitted = submit("run", address, recipe, overrides or [], only, dev=dev, runtime_env=runtime_env)
    if detach:
        typer.echo(submitted.run)
        return
    print_run(f"{submitted.run}: {submitted.url}", outcome(client, submitted), as_json)


def _run_here(
    recipe: Path, stage: str | None, overrides: list[str], cpus: int | None, metrics_port: int | None, as_json: bool
) -> None:
    from triptych.cluster.ray import connect, leave
    from triptych.observe.progress import ProgressDisplay
    from triptych.recipe import load_recipe
    from triptych.stages.run import check_recipe, run_folder, run_recipe

    loaded = load_recipe(recipe, overrides)
    with redirect_stdout(sys.stderr):
        check_recipe(loaded, stage)
    # Ray and libraries print to stdout, which is the results'.
    with redirect_stdout(sys.stderr), connect(cpus, metrics_port):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray sets its own when it starts
        try:
            with ProgressDisplay() as display:
                summaries = run_recipe(loaded, display.handle, stage)
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from the last checkpoint", err=True)
            leave(130)
    print_run(f"{loaded.name}: {run_folder(loaded)}", summaries, as_json)


def print_run(title: str, summaries: dict[str, Any], as_json: bool) -> None:
    """Print the stages' summaries."""
    from rich.console import Console
    from rich.table import Table

    from triptych.cli.evaluation_table import evaluation_table

    if as_json:
        typer.echo(json.dumps(summaries, indent=2))
        return
    table = Table(title=title)
    for column in ("stage", "registered as", "measured"):
        table.add_column(column)
    for name, found in summaries.items():
        measured = ", ".join(f"{key} {value:.3g}" for key, value in found["metrics"].items())
        table.add_row(name, found["registered"], "below" if "comparison" in found else measured)
    console = Console()
    console.print(table)
    for name, found in summaries.items():
        if "comparison" in found:
            console.print(evaluation_table(name, found["comparison"]))
