"""`triptych runs`: list runs, show one, write its report; follow and stop it on a cluster."""

import json
from typing import Annotated, Any

import typer

from triptych.cli.address import Address, addressed, given, reach
from triptych.cli.on_cluster import on_cluster, remote_output
from triptych.cli.registry import AsJson
from triptych.cli.run import print_run
from triptych.cli.samples import print_samples
from triptych.cli.submission import outcome
from triptych.cli.sweep import print_sweep
from triptych.errors import UserError

app = typer.Typer(help="Look at runs: list, show, report; on a cluster also follow and stop.", no_args_is_help=True)

Runs = Annotated[str, typer.Option("--runs", help="Folder or URL of the runs (a recipe's storage.runs).")]

RunName = Annotated[str, typer.Argument(help="Name of the run, its recipe's `name`; of a sweep: with `-sweep`.")]


@app.command("list")
@addressed
def list_(ctx: typer.Context, runs: Runs = "runs", as_json: AsJson = False, address: Address = None) -> None:
    """All runs with the state of their stages; on a cluster also of their jobs."""
    from rich.console import Console
    from rich.table import Table

    elsewhere = runs if given(ctx, "runs") else None
    found = _runs_here(runs) if address is None else _runs_there(address, elsewhere)
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("run", "base", "stages", *([] if address is None else ["job", "runs"]))
    for run in found:
        stages = ", ".join(f"{name} {status}" for name, status in run["stages"].items())
        table.add_row(run["name"], run["base"], stages, *([] if address is None else [run["job"], run["runs"]]))
    Console().print(table)


def _runs_here(runs: str) -> list[dict[str, Any]]:
    from triptych.observe.runs import list_runs

    return [
        {
            "name": run.name,
            "base": str((run.recipe.get("model") or {}).get("base", "?")),
            "stages": {stage.name: stage.status for stage in run.stages},
        }
        for run in list_runs(runs)
    ]


def _runs_there(address: str, runs: str | None) -> list[dict[str, Any]]:
    """Runs that were submitted to a cluster, and other runs in the folders that those were written to."""
    from triptych.cluster.submitted import runs_of

    client = reach(address)
    jobs = [submitted[-1] for submitted in runs_of(client).values() if runs in (None, submitted[-1].runs)]
    found = []
    for place in sorted({runs} if runs else {job.runs for job in jobs}):
        here = {job.run: job for job in jobs if job.runs == place}
        newest = max(here.values(), key=lambda job: job.started, default=None)
        words = ("runs", "list", "--json", "--runs", place)
        lying = {run["name"]: run for run in json.loads(remote_output(client, words, newest))}
        for name in sorted(lying.keys() | here.keys()):
            about = {"job": here[name].status if name in here else "", "runs": place}
            found.append(lying.get(name, {"name": name, "base": "?", "stages": {}}) | about)
    return found


@app.command()
@addressed
def follow(name: RunName, address: Address = None, as_json: AsJson = False) -> None:
    """Show a run or a sweep on a cluster from its beginning to its end; Ctrl-C leaves it going."""
    from triptych.cluster.submitted import find

    client = reach(address)
    submitted = find(client, name)
    found = outcome(client, submitted)
    if submitted.verb == "sweep":
        print_sweep(found, as_json)
    else:
        print_run(f"{name}: {submitted.url}", found, as_json)


@app.command()
@addressed
def stop(name: RunName, address: Address = None) -> None:
    """Stop a run or a sweep on a cluster; the same command again goes on from its last checkpoint."""
    from triptych.cluster.submitted import find

    client = reach(address)
    submitted = find(client, name)
    if not submitted.running:
        raise UserError(f"{name} is not going on: its last job ended as {submitted.status}")
    typer.echo(f"{name}: {client.stop(submitted.job).status.value.lower()}")


@app.command()
@on_cluster
def show(name: RunName, runs: Runs = "runs", as_json: AsJson = False) -> None:
    """One run or sweep: each stage's state, what it registered, what was measured, and what had been predicted."""
    from rich.console import Console
    from rich.table import Table

    from triptych.observe.runs import StageView, find_run
    from triptych.observe.sweeps import find_sweep

    if sweep := find_sweep(runs, name):
        print_sweep(sweep.as_dict(), as_json)
        return

    def record(stage: StageView) -> dict[str, Any]:
        summary = stage.summary or {}
        return {
            "kind": stage.kind,
            "status": stage.status,
            "steps": stage.rows[-1]["step"] if stage.rows else 0,
            "registered": summary.get("registered"),
            "metrics": summary.get("metrics", {}),
            "stopped": summary.get("stopped"),
            "plan": stage.plan and stage.plan | {"compared": [figure.as_dict() for figure in stage.compared]},
        }

    run = find_run(runs, name)
    stages = {stage.name: record(stage) for stage in run.stages}
    if as_json:
        typer.echo(json.dumps({"name": run.name, "url": run.url, "stages": stages}, indent=2))
        return
    table = Table("stage", "kind", "state", "steps", "registered as", "measured", title=f"{run.name}: {run.url}")
    for stage_name, found in stages.items():
        measured = ", ".join(f"{key} {value:.3g}" for key, value in found["metrics"].items())
        registered = found["registered"] or ""
        table.add_row(stage_name, found["kind"], found["status"], str(found["steps"]), registered, measured)
    Console().print(table)
    for stage in run.stages:
        if stage.ending is not None:
            typer.echo(f"{stage.name} {stage.ending}")
    planned = Table("stage", "", "predicted", "from - to", "actual", "predicted / actual", title="Predicted and actual")
    for stage in run.stages:
        for figure in stage.compared:
            planned.add_row(stage.name, *figure.cells())
    if planned.row_count:
        Console().print(planned)


@app.command()
@on_cluster
def samples(
    name: RunName,
    runs: Runs = "runs",
    stage: Annotated[str | None, typer.Option(help="Stage, where several sample.")] = None,
    step: Annotated[int | None, typer.Option(help="Step, counted from 1; the last one by default.")] = None,
    heldout: Annotated[
        str | None,
        typer.Option(help="Held-out answers of a set in `evaluations`, or of `heldout`; --step 0: before training."),
    ] = None,
    groups: Annotated[int, typer.Option(min=1, help="Prompts to show from either end.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Sampled answers of a step of reinforcement learning: the prompts that scored best and worst, answer by answer."""
    from triptych.observe.rollouts import read_groups, read_heldout, sampling_stage
    from triptych.observe.runs import find_run

    found = sampling_stage(find_run(runs, name), stage)
    if heldout is None:
        number, all_groups = read_groups(found, step)
        told: dict[str, int | str] = {"step": number}
        title = f"step {number}"
    else:
        label, all_groups = read_heldout(found, heldout, step)
        told, title = {"set": heldout, "evaluation": label}, f"{heldout}, {label}"
    if as_json:
        typer.echo(json.dumps(told | {"groups": [group.as_dict() for group in all_groups]}))
        return
    print_samples(f"{name}, {found.name}, {title}", all_groups, groups)


@app.command()
@on_cluster(brings_file=True)
def report(name: RunName, runs: Runs = "runs") -> None:
    """Write the report.html of a run or a sweep, one page that needs nothing else, and print where it lies.

    With --address the page comes back, into this folder.
    """
    from triptych.observe.report import write_report
    from triptych.observe.runs import find_run
    from triptych.observe.sweeps import find_sweep

    if sweep := find_sweep(runs, name):
        from triptych.observe.report.sweep import write_sweep_report
        from triptych.tune.importance import importance

        typer.echo(write_sweep_report(sweep, importance(sweep)))
        return
    typer.echo(write_report(find_run(runs, name).url))
