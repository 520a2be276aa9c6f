"""`triptych serve`: the endpoint."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from triptych.cli.address import Address, addressed, reach, say
from triptych.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

    from triptych.cluster.environment import Environment
    from triptych.recipe.serve import ServeConfig


@addressed
def serve(
    config: Annotated[Path | None, typer.Argument(help="YAML file with the fields of a serve config.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on, instead of the config's.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a field.")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus, on a cluster started here.")] = None,
    address: Address = None,
    replace: Annotated[bool, typer.Option("--replace", help="With --address: change the endpoint there.")] = False,
    stop: Annotated[bool, typer.Option("--stop", help="With --address: take the endpoint there down.")] = False,
    dev: Annotated[bool, typer.Option("--dev", help="With --address: run this machine's triptych there.")] = False,
    runtime_env: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --address: Ray's runtime environment, a YAML file.")
    ] = None,
) -> None:
    """Serve a base model and its adapters behind one OpenAI-compatible endpoint, until Ctrl-C.

    With --address it stays on that cluster, until --stop; the same command again tells where it is.
    """
    if stop:
        _stop(config, address)
        return
    if config is None:
        raise UserError("CONFIG is missing: a YAML file with the fields of a serve config")
    from triptych.recipe.load import load_yaml
    from triptych.recipe.serve import ServeConfig

    overrides = [*(set_ or []), *([] if port is None else [f"port={port}"])]
    settings = load_yaml(config, ServeConfig, overrides)
    if address is None:
        if replace or dev or runtime_env is not None:
            raise UserError("--replace, --dev and --runtime-env are for an endpoint on a cluster: give --address")
        _serve_here(settings, metrics_port)
        return
    if metrics_port is not None:
        raise UserError("--metrics-port is for a cluster started here; the one at --address has its own")
    from triptych.cluster.environment import Environment, read_runtime_env

    _serve_there(address, settings, Environment(read_runtime_env(runtime_env), dev), replace)


def _serve_here(settings: "ServeConfig", metrics_port: int | None) -> None:
    from rich.console import Console

    from triptych.serve.preflight import check, check_port

    check_port(settings.host, settings.port)
    check(settings)
    from triptych.cluster.ray import connect
    from triptych.serve.run import models, serving

    console = Console(stderr=True)
    with (
        _spinner(console, "starting Ray") as progress,
        connect(metrics_port=metrics_port),
        serving(settings, progress) as url,
    ):
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


def _serve_there(address: str, settings: "ServeConfig", environment: "Environment", replace: bool) -> None:
    from rich.console import Console

    from triptych.cluster.endpoint import put, reachable

    client = reach(address)
    console = Console(stderr=True)
    try:
        with _spinner(console, "looking at the cluster") as progress:
            found = put(client, settings, environment, say, progress, replace)
    except KeyboardInterrupt:
        say("detached; the endpoint goes on. The same command shows it, `triptych serve --stop` takes it down")
        raise
    here = reachable(client, found.port)
    typer.echo(f"serving at {here or found.urls[0]}")
    if here is None:
        say(f"that is on the cluster's network; from here, forward port {found.port} of its head, or use its ingress")
    if settings.require_key:
        say("clients need a key: triptych keys create --label NAME")


def _stop(config: Path | None, address: str | None) -> None:
    if address is None or config is not None:
        raise UserError("--stop takes down the endpoint of a cluster: give --address, and no CONFIG")
    from triptych.cluster.endpoint import take_down

    client = reach(address)
    if not take_down(client):
        raise UserError(f"{client.address} has no endpoint")
    typer.echo("stopped")


@contextmanager
def _spinner(console: "Console", first: str) -> Iterator["Callable[[str], None]"]:
    """Shows what is being waited for, and for how long; an empty text ends it."""
    started = time.monotonic()
    shown = [first]
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
