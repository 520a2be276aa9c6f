"""Verbs with `--address`: run by the cluster, with their output and exit code here."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from triptych.cli.address import Address, addressed, extend, given, reach, say
from triptych.cli.registry import is_endpoint
from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.cluster.client import Client
    from triptych.cluster.remote_call import CallResult
    from triptych.cluster.submitted import Submitted


def terminal_width() -> int:
    """Columns of the terminal; 100 without one."""
    return shutil.get_terminal_size((100, 24)).columns


def on_cluster(
    verb: Callable[..., None] | None = None,
    *,
    sends: str | None = None,
    brings: str | None = None,
    brings_file: bool = False,
    of_endpoint: bool = False,
) -> Callable[..., Any]:
    """Decorator that gives a verb `--address` and `--kube-context`; for its parameters see `forward`.

    If `--runs` or `--registry` is not given, the verb uses that of the last run submitted to the cluster.
    """
    how: dict[str, Any] = {"sends": sends, "brings": brings, "brings_file": brings_file, "of_endpoint": of_endpoint}
    if verb is None:
        return functools.partial(on_cluster, **how)

    @functools.wraps(verb)
    def wrapped(ctx: typer.Context, address: str | None = None, **values: Any) -> None:
        if address is None or is_endpoint(values.get("registry")):
            verb(**values)
        else:
            forward(ctx, address, values, **how)

    extend(wrapped, verb, {"address": Address})
    return addressed(wrapped)


def forward(
    ctx: typer.Context,
    address: str,
    values: dict[str, Any],
    *,
    sends: str | None = None,
    brings: str | None = None,
    brings_file: bool = False,
    of_endpoint: bool = False,
) -> None:
    """Run the verb on the cluster; print what it prints, and exit as it does.

    Args:
        values: the verb's parameters.
        sends: name of a parameter that is a folder here, which is sent with the call; a URL is read there.
        brings: name of a parameter that is a folder here, which comes back.
        brings_file: the verb prints the URL of a file, which comes back as `<run>-<file>`.
        of_endpoint: the registry, if not given, is that of the endpoint there.
    """
    from triptych.cluster.bundle import Bundle, bundle_folder
    from triptych.cluster.environment import Environment
    from triptych.cluster.remote_call import FOLDER, RemoteCall
    from triptych.cluster.submit import send
    from triptych.cluster.submitted import find, latest

    target = str(values[brings]) if brings and "://" not in str(values[brings]) else None
    if target is not None and Path(target).exists():
        raise UserError(f"{target} exists already: name a new folder")
    client = reach(address)
    own_runs = "runs" in values and not given(ctx, "runs")
    job = find(client, values["name"]) if own_runs else latest(client)
    sent = dict(values) | ({"runs": job.runs} if own_runs and job else {})
    if of_endpoint and not given(ctx, "registry"):
        sent |= _registry_of_endpoint(client)
    carried = sends if sends and "://" not in str(values[sends]) else None
    for name in (carried, brings if target else None):
        sent |= {name: FOLDER} if name else {}
    words = (*_names(ctx), *_words(ctx, sent))
    run = job.url if job and "registry" in values else None
    call = RemoteCall(words, terminal_width(), run=run, brings=brings_file)
    bundle = bundle_folder(values[carried], call) if carried else Bundle(call)
    result, output = send(client, bundle, job.environment if job else Environment())
    _pass_on(result, output)
    if target is not None:
        bring(output, result.sha256, Path(target))
        typer.echo(result.stdout.replace(FOLDER, target), nl=False)
    elif brings_file:
        typer.echo(_bring_file(output, result.sha256, values["name"]))
    else:
        typer.echo(result.stdout, nl=False)


def _registry_of_endpoint(client: "Client") -> dict[str, str]:
    from triptych.cluster.endpoint import find_endpoint

    endpoint = find_endpoint(client)
    return {} if endpoint is None else {"registry": str(endpoint.args["registry"])}


def remote_output(client: "Client", words: tuple[str, ...], job: "Submitted | None") -> str:
    """Run a verb on the cluster and return its stdout; exit as it does if it fails.

    Args:
        words: the verb and its arguments.
        job: a submitted run whose environment the verb gets; None: the image's own.
    """
    from triptych.cluster.bundle import Bundle
    from triptych.cluster.environment import Environment
    from triptych.cluster.remote_call import RemoteCall
    from triptych.cluster.submit import send

    result, output = send(client, Bundle(RemoteCall(words)), job.environment if job else Environment())
    _pass_on(result, output)
    return result.stdout


def _pass_on(result: "CallResult", output: str) -> None:
    """Show the errors of a verb that failed on the cluster, and exit as it did."""
    if result.code:
        typer.echo(result.stdout, nl=False)
        said = [line for line in output.split("\n") if line.startswith("error: ")]
        say("\n".join(said or ["error: it failed on the cluster"]))
        raise typer.Exit(result.code)


def _bring_file(output: str, sha256: Mapping[str, str], run: str) -> str:
    """Write the one file that came back into the working folder, and return its path."""
    from triptych.cluster.remote_call import fetch

    [name] = sha256
    target = Path(f"{run}-{name}")
    with tempfile.TemporaryDirectory(prefix=f".{run}-", dir=Path.cwd()) as staging:
        fetch(output, sha256, Path(staging) / "files")
        (Path(staging) / "files" / name).replace(target)
    return str(target)


def bring(output: str, sha256: Mapping[str, str], target: Path) -> None:
    """Write the files that came back to the new folder `target`, all of them or none."""
    from triptych.cluster.remote_call import fetch

    target.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.absolute().parent) as staging:
        fetch(output, sha256, Path(staging) / "files")
        (Path(staging) / "files").rename(target)


def _names(ctx: typer.Context) -> list[str]:
    """Words of the command that name the verb, such as `adapters`, `list`."""
    names: list[str] = []
    level: Any = ctx
    while level.parent is not None:
        names.insert(0, str(level.info_name))
        level = level.parent
    return names


def _words(ctx: typer.Context, values: dict[str, Any]) -> list[str]:
    """Command-line arguments that give the verb these values; its defaults are left out."""
    options: list[str] = []
    positional: list[str] = []
    for parameter in ctx.command.params:
        name = str(parameter.name)
        if name not in values or (not given(ctx, name) and values[name] == ctx.params.get(name)):
            continue
        value = values[name]
        if parameter.param_type_name == "argument":
            positional.append(str(value))
        elif isinstance(value, bool):
            options += [parameter.opts[0]] if value else []
        else:
            for one in value if isinstance(value, list | tuple) else [value]:
                options += [parameter.opts[0], str(one)]
    return [*options, "--", *positional]
