"""`triptych sweep`: trials of one stage over a space, under a budget."""

import json
import signal
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from triptych.observe.sweeps import SweepView, TrialView


def sweep(
    recipe: Annotated[Path, typer.Argument(help="Recipe with a `sweep:`, a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=value.")] = None,
    train_winner: Annotated[
        bool, typer.Option("--train-winner", help="Train the best point in full, and register what comes out.")
    ] = False,
    cpus: Annotated[int | None, typer.Option(help="Logical CPUs of a cluster started here; all if not given.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus, on a cluster started here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the final table as JSON.")] = False,
) -> None:
    """Search a recipe's space for the best values of a stage. The same command again goes on where it stopped.

    Trials that ended are not repeated; those under way go on from their checkpoints.
    """
    from triptych.cluster.ray import connect, leave
    from triptych.observe.progress import ProgressDisplay
    from triptych.observe.report.sweep import write_sweep_report
    from triptych.recipe import load_recipe
    from triptych.tune.importance import importance
    from triptych.tune.sweep import check_sweep, run_sweep
    from triptych.tune.winner import train_best

    loaded = load_recipe(recipe, overrides or [])
    wanted = check_sweep(loaded)
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
    page = write_sweep_report(found, importance(found))
    if as_json:
        typer.echo(json.dumps(found.as_dict() | {"report": page, "winner": registered}, indent=2))
        return
    _print(found, registered, page)


def _print(found: "SweepView", registered: dict[str, Any] | None, page: str) -> None:
    """The final table, and the best point as `--set` takes it."""
    from rich.console import Console
    from rich.table import Table

    from triptych.recipe import overrides_of

    console = Console()
    objectives = [objective.metric for objective in found.sweep.objectives]
    keys = list(found.sweep.space)
    table = Table("trial", "state", "steps", *short(keys).values(), *objectives, title=f"{found.name}: {found.url}")
    for trial in found.trials:
        if trial.launched:
            values = [_shown(trial.values.get(key)) for key in keys]
            measured = [_shown(trial.metrics.get(metric)) for metric in objectives]
            table.add_row(trial.name, trial.status, str(trial.step), *values, *measured)
    console.print(table)
    without_room = [trial for trial in found.trials if not trial.launched]
    if without_room:
        typer.echo(f"{len(without_room)} points were never launched, the first because {without_room[0].reason}")
    best: list[TrialView] = found.front if len(objectives) > 1 else [found.best] if found.best else []
    typer.echo("no other beats:" if len(objectives) > 1 else "best:")
    for trial in best:
        settings = " ".join(f"--set '{text}'" for text in overrides_of(found.recipe, trial.values))
        typer.echo(f"  {trial.name}: {settings}")
    if registered:
        typer.echo(f"registered as {registered['registered']}")
    typer.echo(page)


def short(keys: list[str]) -> dict[str, str]:
    """Dotted keys by their last parts, as many as tell them apart."""
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
