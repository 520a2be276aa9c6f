"""`triptych sweep`: trials of one stage over a space, under a budget."""

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
def sweep(
    recipe: Annotated[Path, typer.Argument(help="Recipe with a `sweep:`, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=value.")] = None,
    train_winner: Annotated[
        bool, typer.Option("--train-winner", help="Train the best point in full, and register what comes out.")
    ] = False,
    cpus: Cpus = None,
    metrics_port: MetricsPort = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final table as JSON.")] = False,
    address: Address = None,
    detach: Detach = False,
    dev: Dev = False,
    runtime_env: RuntimeEnv = None,
) -> None:
    """Search a recipe's space for the best values of a stage. The same command again goes on where it stopped.

    Trials that ended are not repeated; those under way go on from their checkpoints. With --address all of it happens
    on a cluster; `triptych runs` follows, shows, reports and stops it, under the recipe's name with `-sweep`.
    """
    check_place(address, detach=detach, dev=dev, runtime_env=runtime_env, cpus=cpus, metrics_port=metrics_port)
    if address is None:
        print_sweep(_sweep_here(recipe, overrides or [], train_winner, cpus, metrics_port), as_json)
        return
    more = ("--train-winner",) if train_winner else ()
    client, submitted = submit("sweep", address, recipe, overrides or [], more, dev=dev, runtime_env=runtime_env)
    if detach:
        typer.echo(submitted.run)
        return
    print_sweep(outcome(client, submitted), as_json)


def _sweep_here(
    recipe: Path, overrides: list[str], train_winner: bool, cpus: int | None, metrics_port: int | None
) -> dict[str, Any]:
    """Run the sweep, and its winner if wanted; the final table as JSON, with the report's path and the winner."""
    from triptych.cluster.ray import connect, leave
    from triptych.models.base import resolve_base
    from triptych.observe.progress import ProgressDisplay
    from triptych.observe.report.sweep import write_sweep_report
    from triptych.recipe import load_recipe
    from triptych.stages.preflight import STARTED, check_engines, check_rows
    from triptych.tune.importance import importance
    from triptych.tune.sweep import check_sweep, run_sweep, train_best

    loaded = load_recipe(recipe, overrides)
    wanted = check_sweep(loaded)
    check_engines(loaded, [wanted.stage])
    check_rows(loaded, [wanted.stage], resolve_base(loaded.model), STARTED, here=True)
    registered: dict[str, Any] | None = None
    # Ray and libraries print to stdout, which is the results'.
    with redirect_stdout(sys.stderr), connect(cpus, metrics_port, dashboard=True):
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray sets its own when it starts
        try:
            with ProgressDisplay() as display:
                found = run_sweep(loaded, display.handle)
                if train_winner or wanted.winner.train:
                    registered = train_best(found, display.handle)
        except KeyboardInterrupt:
            typer.echo("stopped; the same command goes on from the trials' last checkpoints", err=True)
            leave(130)
    return found.as_dict() | {"report": write_sweep_report(found, importance(found)), "winner": registered}


def print_sweep(found: dict[str, Any], as_json: bool) -> None:
    """Print the table of a sweep, and its best points as options of `--set`.

    Args:
        found: `SweepView.as_dict`; may have `report` and `winner` too.
    """
    from rich.console import Console
    from rich.table import Column, Table

    from triptych.observe.sweeps import trial_name

    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    objectives = [objective["metric"] for objective in found["objectives"]]
    table = Table(
        Column("trial", min_width=len(trial_name(0))),  # a name that is cut short is no name
        "state",
        "steps",
        *short(found["space"]).values(),
        *objectives,
        title=f"{found['name']}: {found['url']}",
    )
    without_room = [trial for trial in found["trials"] if trial["status"] == "infeasible"]
    for trial in found["trials"]:
        if trial not in without_room:
            values = [_shown(trial["values"].get(key)) for key in found["space"]]
            measured = [_shown(trial["metrics"].get(metric)) for metric in objectives]
            table.add_row(trial["trial"], trial["status"], str(trial["step"]), *values, *measured)
    Console().print(table)
    if without_room:
        typer.echo(f"{len(without_room)} points were never launched, the first because {without_room[0]['reason']}")
    typer.echo("no other beats:" if len(objectives) > 1 else "best:")
    for name, settings in found["settings"].items():
        words = " ".join(f"--set '{text}'" for text in settings)
        typer.echo(f"  {name}: {words}")
    if found.get("winner"):
        typer.echo(f"registered as {found['winner']['registered']}")
    if "report" in found:
        typer.echo(found["report"])


def short(keys: list[str]) -> dict[str, str]:
    """Dotted key -> as many of its last parts as tell it from the others."""
    names = {}
    for key in keys:
        parts = key.split(".")
        count = 1
        while count < len(parts) and any(
            other != key and other.split(".")[-count:] == parts[-count:] for other in keys
        ):
            count += 1
        names[key] = ".".join(parts[-count:])
    return names


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
