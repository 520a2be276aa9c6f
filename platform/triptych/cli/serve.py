"""`triptych serve`: the endpoint."""

import signal
import threading
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
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus, on a cluster started here.")] = None,
) -> None:
    """Serve a base model and its adapters behind one OpenAI-compatible endpoint, until Ctrl-C."""
    from rich.console import Console

    from triptych.recipe.load import load_yaml
    from triptych.recipe.serve import ServeConfig
    from triptych.serve.preflight import check, check_port

    overrides = [*(set_ or []), *([] if port is None else [f"port={port}"])]
    settings = load_yaml(config, ServeConfig, overrides)
    check_port(settings.host, settings.port)
    check(settings)
    from triptych.cluster.ray import connect
    from triptych.serve.run import models, serving

    console = Console(stderr=True)
    with _spinner(console) as progress, connect(metrics_port=metrics_port), serving(settings, progress) as url:
        progress("")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray sets its own when it starts
        typer.echo(f"serving at {url}")
        for model in models():
            typer.echo(f"  {model}")
        if settings.require_key:
            console.print("clients need a key: triptych keys create --label NAME", style="dim")
        console.print("Ctrl-C stops it", style="dim")
        _until_interrupted()
        console.print("stopping", style="dim")


@contextmanager
def _spinner(console: "Console") -> Iterator["Callable[[str], None]"]:
    """Shows what is being waited for, and for how long; an empty text ends it."""
    started = time.monotonic()
    shown = ["starting Ray"]
    ended = threading.Event()

    def show() -> None:
        with console.status("") as status:
            while not ended.wait(0.2):
                status.update(f"{shown[0]} ({time.monotonic() - started:.0f} s)")

    def progress(text: str) -> None:
        shown[0] = text
        if not text:
            ended.set()
            thread.join()

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield progress
    finally:
        progress("")
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray sets its own when it starts


def _until_interrupted() -> None:
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return
