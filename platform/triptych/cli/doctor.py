"""`triptych doctor`: checks of this machine or of a cluster."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from triptych.cli.address import Address, addressed

MARKS = {"ok": "[green]ok     [/green]", "warning": "[yellow]warning[/yellow]", "missing": "[red]missing[/red]"}


@addressed
def doctor(
    runs: Annotated[Path, typer.Option(help="Folder that runs are written to.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    address: Address = None,
) -> None:
    """Show what this machine can do and what is missing; exit 1 if something needed is. Takes half a minute.

    With --address: whether that cluster is reached, takes the token, and reads recipes as this machine does.
    """
    from rich.console import Console

    from triptych.cluster.check import Check
    from triptych.cluster.doctor import examine, examine_cluster

    console = Console(highlight=False, soft_wrap=True)
    checks: list[Check] = []
    for check in examine(runs) if address is None else examine_cluster(address):
        checks.append(check)
        if not as_json:
            console.print(f"{MARKS[check.status]} {check.name:14}", end="")
            console.print(check.found, markup=False)
            if check.status != "ok":
                console.print(f"{'':22} -> {check.advice}", markup=False)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    if any(check.status == "missing" for check in checks):
        raise typer.Exit(1)
