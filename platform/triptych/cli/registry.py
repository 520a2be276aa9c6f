"""What the verbs on the registry share: how it is named, and tables that scripts can cut."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from triptych.registry import Registry

DEFAULT = "sqlite:///runs/registry.db"

RegistryUrl = Annotated[
    str,
    typer.Option(
        "--registry",
        envvar="TRIPTYCH_REGISTRY",
        metavar="URL",
        help="SQLAlchemy URL or SQLite file. A URL with a password belongs in the variable.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_registry(url: str, artifacts: str | None = None, *, create: bool = False) -> "Registry":
    """The registry that the options name; only verbs that add to it create it."""
    from triptych.registry import Registry

    return Registry(url, artifacts, create=create)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Left-aligned columns, never wrapped or cut."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
