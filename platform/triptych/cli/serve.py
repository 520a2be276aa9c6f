"""`triptych serve`: the endpoint."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console


def serve(
    config: Annotated[Path, typer.Argument(help="YAML file with the fields of a serve config.")],
    port: Annotated[int | None, typer.Option(help="Port to listen on, instead of the config's.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a field.")] = None,
) -> None:
    """Serve a base model and its adapters behind one OpenAI-compatible endpoint, until Ctrl-C."""
    from rich.console import Console

    from triptych.cluster.ray import connect
    from triptych.recipe.load import load_yaml
    from triptych.recipe.serve import ServeConfig
    from triptych.serve.run import check_port, serving

    overrides = [*(set_ or []), *([] if port is None else [f"port={port}"])]
    settings = load_yaml(config, ServeConfig, overrides)
    check_port(settings.host, settings.port)
    console = Console(stderr=True)
    with connect(), _spinner(console) as progress, serving(settings, progress) as url:
        progress("")
        typer.echo(f"serving {settings.model_id} at {url}")
        if settings.require_key:
            typer.echo("clients need a key: triptych keys create LABEL")
        console.print("Ctrl-C stops it", style="dim")
        _until_interrupted()
        console.print("stopping")


@contextmanager
def _spinner(console: "Console") -> Iterator["Callable[[str], None]"]:
    """Shows what is being waited for, and for how long; an empty text ends it."""
    started = time.monotonic()
    with console.status("") as status:

        def progress(text: str) -> None:
            if text:
                status.update(f"{text} ({time.monotonic() - started:.0f} s)")
            else:
                status.stop()

        yield progress


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
