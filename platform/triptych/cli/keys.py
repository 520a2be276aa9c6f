"""`triptych keys`: who may use the endpoint."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.address import Address, addressed
from triptych.cli.on_cluster import forward, on_cluster
from triptych.cli.registry import DEFAULT, AsJson, RegistryUrl, is_endpoint, open_registry, print_table

if TYPE_CHECKING:
    from triptych.registry import Key

app = typer.Typer(help="API keys of the endpoint.", no_args_is_help=True)


@app.command()
@addressed
def create(
    ctx: typer.Context,
    label: Annotated[str, typer.Option(help="Whose key it is.")],
    admin: Annotated[bool, typer.Option("--admin", help="It may also change aliases, versions and keys.")] = False,
    sha256: Annotated[str | None, typer.Option(metavar="HEX", help="Let a key in that was made elsewhere.")] = None,
    registry: RegistryUrl = DEFAULT,
    address: Address = None,
) -> None:
    """Make a key and print it: this once, for the registry keeps only its hash. With --address only that travels."""
    from triptych.registry.keys import make_key

    key, digest = make_key() if sha256 is None else ("", sha256)
    if address is None or is_endpoint(registry):
        open_registry(registry, create=sha256 is None).add_key(digest, label, admin=admin)
    else:
        values = {"label": label, "admin": admin, "sha256": digest, "registry": registry}
        forward(ctx, address, values, of_endpoint=True)
    if key:
        typer.echo(key)
        typer.echo("Keep it now: it cannot be shown again.", err=True)


@app.command("list")
@on_cluster(of_endpoint=True)
def list_(registry: RegistryUrl = DEFAULT, as_json: AsJson = False) -> None:
    """All keys by id, revoked ones too; never the keys themselves."""
    found = open_registry(registry).keys()
    if as_json:
        typer.echo(json.dumps([asdict(key) for key in found], indent=2, default=str))
        return
    rows = [
        (key.id, key.label, _scope(key), f"{key.created_at:%Y-%m-%d %H:%M}", _last_used(key), _state(key))
        for key in found
    ]
    print_table(("id", "label", "may", "created", "last used", "state"), rows)


@app.command()
@on_cluster(of_endpoint=True)
def revoke(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it.")],
    registry: RegistryUrl = DEFAULT,
) -> None:
    """Refuse a key from now on."""
    open_registry(registry).revoke_key(key_id)
    typer.echo(f"revoked {key_id}")


def _scope(key: "Key") -> str:
    return "ask, administer" if key.admin else "ask"


def _last_used(key: "Key") -> str:
    return f"{key.last_used:%Y-%m-%d %H:%M}" if key.last_used else "never"


def _state(key: "Key") -> str:
    return f"revoked {key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else "valid"
