"""`triptych keys`: who may use the endpoint."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.registry import DEFAULT, AsJson, RegistryUrl, open_registry, print_table

if TYPE_CHECKING:
    from triptych.registry import Key

app = typer.Typer(help="API keys of the endpoint.", no_args_is_help=True)


@app.command()
def create(
    label: Annotated[str, typer.Option(help="Whose key it is.")],
    registry: RegistryUrl = DEFAULT,
) -> None:
    """Make a key and print it: this once, for the registry keeps only its hash."""
    key = open_registry(registry, create=True).create_key(label)
    typer.echo(key)
    typer.echo("Keep it now: it cannot be shown again.", err=True)


@app.command("list")
def list_(registry: RegistryUrl = DEFAULT, as_json: AsJson = False) -> None:
    """All keys by id, revoked ones too; never the keys themselves."""
    found = open_registry(registry).keys()
    if as_json:
        typer.echo(json.dumps([asdict(key) for key in found], indent=2, default=str))
        return
    rows = [(key.id, key.label, f"{key.created_at:%Y-%m-%d %H:%M}", _last_used(key), _state(key)) for key in found]
    print_table(("id", "label", "created", "last used", "state"), rows)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    registry: RegistryUrl = DEFAULT,
) -> None:
    """Refuse a key from now on."""
    open_registry(registry).revoke_key(key_id)
    typer.echo(f"revoked {key_id}")


def _last_used(key: "Key") -> str:
    return f"{key.last_used:%Y-%m-%d %H:%M}" if key.last_used else "never"


def _state(key: "Key") -> str:
    return f"revoked {key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "valid"
