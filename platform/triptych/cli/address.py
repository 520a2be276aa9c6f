"""Options for the cluster that a verb acts on: `--address`, or `--kube-context` for a port-forward to one."""

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.cluster.client import Client

Address = Annotated[
    str | None,
    typer.Option(
        "--address",
        envvar="TRIPTYCH_ADDRESS",
        metavar="URL",
        help="Act on the Ray cluster whose dashboard is there; its token: RAY_AUTH_TOKEN_PATH or RAY_AUTH_TOKEN.",
    ),
]
_KubeContext = Annotated[
    str | None,
    typer.Option(
        "--kube-context",
        metavar="NAME",
        help="In place of --address: the Ray cluster in that context of kubectl, by a port-forward.",
    ),
]
_Namespace = Annotated[
    str | None, typer.Option("--namespace", metavar="NAME", help="With --kube-context: not the context's own.")
]


def say(text: str) -> None:
    """Print a line about what is going on to stderr."""
    typer.echo(text, err=True)


def reach(address: str | None) -> "Client":
    """Connect to a cluster. Warns if it takes no token, or if the token travels unencrypted.

    Raises:
        UserError: there is no address, or no cluster that lets this machine in.
    """
    if address is None:
        raise UserError("this is about a cluster: give --address, TRIPTYCH_ADDRESS or --kube-context")
    from triptych.cluster.client import connect
    from triptych.credentials import sends_in_clear

    client = connect(address)
    if not client.uses_token:
        say(f"warning: {address} asks for no token: whoever reaches it can run code there")
    elif sends_in_clear(client.address):
        say(f"warning: token and data travel to {client.address} in the clear; use https, or a port-forward")
    return client


def given(ctx: typer.Context, name: str) -> bool:
    """True if a parameter was set on the command line or by its environment variable."""
    return getattr(ctx.get_parameter_source(name), "name", "") in ("COMMANDLINE", "ENVIRONMENT")


def addressed(verb: Callable[..., None]) -> Callable[..., None]:
    """Decorator that gives a verb with an `address` also `--kube-context` and `--namespace`, which supply one."""
    known = inspect.signature(verb).parameters

    @functools.wraps(verb)
    def wrapped(
        ctx: typer.Context, kube_context: str | None = None, namespace: str | None = None, **values: Any
    ) -> None:
        own = {"ctx": ctx} if "ctx" in known else {}
        if kube_context is None:
            if namespace is not None:
                raise UserError("--namespace goes with --kube-context")
            verb(**own, **values)
            return
        if getattr(ctx.get_parameter_source("address"), "name", "") == "COMMANDLINE":
            raise UserError("--address and --kube-context both say which cluster: give one of them")
        from triptych.cluster.forward import forwarded

        with forwarded(kube_context, namespace, say) as url:
            verb(**own, **values | {"address": url})

    extend(wrapped, verb, {"kube_context": _KubeContext, "namespace": _Namespace})
    return wrapped


def extend(wrapped: Callable[..., None], verb: Callable[..., None], options: dict[str, Any]) -> None:
    """Give `wrapped` a signature from which typer makes its options.

    Args:
        verb: the function that it wraps, whose parameters it keeps.
        options: name -> annotation of further options, None by default. A `ctx` is always added.
    """
    kind = inspect.Parameter.KEYWORD_ONLY
    known = {name: one.replace(kind=kind) for name, one in inspect.signature(verb).parameters.items()}
    known["ctx"] = inspect.Parameter("ctx", kind, annotation=typer.Context)
    more = {name: inspect.Parameter(name, kind, default=None, annotation=kind_) for name, kind_ in options.items()}
    everything = known | more
    wrapped.__signature__ = inspect.Signature(list(everything.values()))  # type: ignore[attr-defined]
    wrapped.__annotations__ = {name: one.annotation for name, one in everything.items()}
