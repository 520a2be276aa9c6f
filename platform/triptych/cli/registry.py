"""Shared by the verbs on the registry: options that name it, and tables that scripts can cut."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from triptych.registry import Registry

DEFAULT = "sqlite:///runs/registry.db"

Ref = Annotated[str, typer.Argument(metavar="REF", help="NAME, NAME@VERSION or NAME@ALIAS.")]
RegistryUrl = Annotated[
    str,
    typer.Option(
        "--registry",
        envvar="TRIPTYCH_REGISTRY",
        metavar="URL",
        help="SQLAlchemy URL, SQLite file, or an endpoint's https:// URL by the admin key in TRIPTYCH_KEY_PATH or "
        "TRIPTYCH_KEY. A URL with a password belongs in the variable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def is_endpoint(url: object) -> bool:
    """True if a registry's URL is that of an endpoint, which is reached from here whatever --address says."""
    return str(url).startswith(("http://", "https://"))


def open_registry(url: str, artifacts: str | None = None, *, create: bool = False) -> "Registry":
    """Open the registry that the options name.

    Args:
        url: see RegistryUrl. A warning is printed if its key travels unencrypted.
        artifacts: folder or URL for the files of new versions.
        create: make the registry if there is none, for verbs that add to it.
    """
    from triptych.credentials import sends_in_clear
    from triptych.registry import Registry

    if sends_in_clear(url):
        typer.echo(f"warning: the key travels to {url} in the clear; use https, or a port-forward", err=True)
    return Registry(url, artifacts, create=create)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print left-aligned columns, never wrapped or cut."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
