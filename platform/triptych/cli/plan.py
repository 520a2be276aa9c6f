"""`triptych plan`: what a recipe would do, and what it needs, before anything is launched."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from triptych.plan import Bytes, Estimate, Machine, Placement
    from triptych.recipe import Recipe


def plan(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    stage: Annotated[str | None, typer.Option(help="Plan this stage only.")] = None,
    overrides: Annotated[list[str] | None, typer.Option("--set", help="Override a field: a.b=value.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Check a recipe; show it resolved, its placement, and its predicted memory and speed. Launches nothing.

    `machine: local` is the cluster at RAY_ADDRESS where that is set, else this machine.
    """
    from rich.console import Console

    from triptych.plan import estimate, place
    from triptych.recipe import dump_recipe, load_recipe

    loaded = load_recipe(recipe, overrides or [])
    machine = _machine(loaded)
    predicted = estimate(loaded, machine=machine, stage=stage)
    placement = place(loaded, machine, stage)
    if as_json:
        found = {
            "recipe": loaded.model_dump(mode="json"),
            "placement": placement.as_dict(),
            "estimate": predicted.as_dict(),
        }
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(dump_recipe(loaded))
    console = Console()
    _print_placement(console, placement)
    _print_memory(console, predicted)
    _print_totals(console, predicted)


def _machine(recipe: "Recipe") -> "Machine":
    from triptych.plan import cluster, machine

    if recipe.machine != "local" or not os.environ.get("RAY_ADDRESS"):
        return machine(recipe.machine)

    import ray

    from triptych.cluster.ray import connect

    with connect():
        return cluster(ray.nodes(), os.environ["RAY_ADDRESS"])


def _print_placement(console: "Console", placement: "Placement") -> None:
    from rich.table import Table

    table = Table(title=f"Placement on {placement.machine}")
    for column, align in (
        ("starts", "right"),
        ("stage", "left"),
        ("processes", "left"),
        ("CPUs", "right"),
        ("GPUs", "right"),
    ):
        table.add_column(column, justify=align)  # type: ignore[arg-type]
    for number, wave in enumerate(placement.waves, start=1):
        for name in wave:
            for request in placement.requests[name]:
                processes = f"{request.count} {request.role}{'s' * (request.count > 1)}"
                shares = (f"{request.count} x {share:g}" for share in (request.cpus, request.gpus))
                table.add_row(str(number), name, processes, *shares)
    console.print(table)


def _print_memory(console: "Console", predicted: "Estimate") -> None:
    from rich.table import Table

    table = Table(title="Memory of one process, MiB (estimates)")
    for column in ("stage", "role", "part"):
        table.add_column(column)
    table.add_column("expected", justify="right")
    table.add_column("from - to", justify="right")
    for name, stage in predicted.stages.items():
        for role, found in stage.roles.items():
            for part, amount in found.parts.items():
                table.add_row(name, role, part, *_amounts(amount))
            table.add_row(name, role, "all parts", *_amounts(found.peak), style="bold", end_section=True)
    console.print(table)


def _print_totals(console: "Console", predicted: "Estimate") -> None:
    from rich.table import Table

    table = Table(title="Totals (estimates)")
    for column in ("stage", "strategy", "device"):
        table.add_column(column)
    for column in ("peak MiB", "from - to", "has MiB", "tokens/s"):
        table.add_column(column, justify="right")
    for name, stage in predicted.stages.items():
        for label, device in stage.devices.items():
            style = "bold red" if device.peak.expected > device.capacity else None
            speed = f"{stage.tokens_per_second:,.0f}"
            amounts = (*_amounts(device.peak), f"{device.capacity / 2**20:,.0f}")
            table.add_row(name, stage.strategy, label, *amounts, speed, style=style)
    console.print(table)


def _amounts(amount: "Bytes") -> tuple[str, str]:
    low, expected, high = (f"{part / 2**20:,.0f}" for part in (amount.low, amount.expected, amount.high))
    return expected, low if low == high else f"{low} - {high}"
