"""`triptych run`: all stages of a recipe, or one."""

import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated

import typer


def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    stage: Annotated[str | None, typer.Option(help="Run this stage only.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=value.")] = None,
    cpus: Annotated[int | None, typer.Option(help="Logical CPUs of a cluster started here; all if not given.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus, on a cluster started here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the stages' summaries as JSON.")] = False,
) -> None:
    """Run a recipe's stages. The same command again goes on where it stopped; finished stages are not done again."""
    from rich.console import Console
    from rich.table import Table

    from triptych.cluster.ray import connect, leave
    from triptych.observe.progress import ProgressDisplay
    from triptych.recipe import load_recipe
    from triptych.stages.run import run_folder, run_recipe

    loaded = load_recipe(recipe, overrides or [])
    # Ray and libraries print to stdout, which is the results'.
    with redirect_stdout(sys.stderr), connect(cpus, metrics_port):
        try:
            with ProgressDisplay() as display:
                summaries = run_recipe(loaded, display.handle, stage)
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from the last checkpoint", err=True)
            leave(130)
    if as_json:
        typer.echo(json.dumps(summaries, indent=2))
        return
    table = Table(title=f"{loaded.name}: {run_folder(loaded)}")
    for column in ("stage", "registered as", "measured"):
        table.add_column(column)
    for name, found in summaries.items():
        measured = ", ".join(f"{key} {value:.3g}" for key, value in found["metrics"].items())
        table.add_row(name, found["registered"], measured)
    Console().print(table)
