"""`triptych runs`: what ran, how far it came, and its report."""

import json
from typing import Annotated, Any

import typer

app = typer.Typer(help="Look at runs: list, show, report.", no_args_is_help=True)

Runs = Annotated[str, typer.Option("--runs", help="Folder or URL of the runs (a recipe's storage.runs).")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="Name of the run: its recipe's `name`.")]


@app.command("list")
def list_(runs: Runs = "runs", as_json: AsJson = False) -> None:
    """All runs with the state of their stages."""
    from rich.console import Console
    from rich.table import Table

    from triptych.observe.runs import list_runs

    found = list_runs(runs)
    if as_json:
        typer.echo(json.dumps([{"name": run.name, "stages": {s.name: s.status for s in run.stages}} for run in found]))
        return
    table = Table("run", "base", "stages")
    for run in found:
        stages = ", ".join(f"{stage.name} {stage.status}" for stage in run.stages)
        table.add_row(run.name, str((run.recipe.get("model") or {}).get("base", "?")), stages)
    Console().print(table)


@app.command()
def show(name: Name, runs: Runs = "runs", as_json: AsJson = False) -> None:
    """One run: each stage's state, what it registered and what was measured."""
    from rich.console import Console
    from rich.table import Table

    from triptych.observe.runs import StageView, find_run

    def record(stage: StageView) -> dict[str, Any]:
        summary = stage.summary or {}
        return {
            "kind": stage.kind,
            "status": stage.status,
            "steps": stage.rows[-1]["step"] if stage.rows else 0,
            "registered": summary.get("registered"),
            "metrics": summary.get("metrics", {}),
        }

    run = find_run(runs, name)
    stages = {stage.name: record(stage) for stage in run.stages}
    if as_json:
        typer.echo(json.dumps({"name": run.name, "url": run.url, "stages": stages}, indent=2))
        return
    table = Table("stage", "kind", "state", "steps", "registered as", "measured", title=f"{run.name}: {run.url}")
    for stage, found in stages.items():
        measured = ", ".join(f"{key} {value:.3g}" for key, value in found["metrics"].items())
        registered = found["registered"] or ""
        table.add_row(stage, found["kind"], found["status"], str(found["steps"]), registered, measured)
    Console().print(table)


@app.command()
def report(name: Name, runs: Runs = "runs") -> None:
    """Write the run's report.html, one page that needs nothing else, and print where it lies."""
    from triptych.observe.report import write_report
    from triptych.observe.runs import find_run

    typer.echo(write_report(find_run(runs, name).url))
