"""The `triptych` command: one verb for each thing a person does.

Results go to stdout, logs and errors to stderr. Exit code 0; 1 where it failed; 2 where the request was wrong; 130
after Ctrl-C. Verbs import torch, ray and vllm inside their functions, so that `--help` answers at once.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from triptych import __version__
from triptych.errors import RunError, UserError

app = typer.Typer(
    name="triptych",
    help="Train, tune and serve language-model adapters on Ray.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"triptych {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options before the verb."""


# A module is either one verb (a function of its own name) or a group of them (`app`).
for _verb in ("doctor", "plan", "run", "serve", "adapters", "keys", "runs", "data"):
    if find_spec(f"triptych.cli.{_verb}") is None:
        continue
    _module = import_module(f"triptych.cli.{_verb}")
    if isinstance(getattr(_module, "app", None), typer.Typer):
        app.add_typer(_module.app, name=_verb)
    else:
        app.command(_verb)(getattr(_module, _verb))


def main() -> None:
    """Run the command line and exit with its code."""
    try:
        app()
    except UserError as error:
        _fail(error, 2)
    except RunError as error:
        _fail(error, 1)
    except KeyboardInterrupt:
        sys.exit(130)


def _fail(error: Exception, code: int) -> None:
    typer.echo(f"error: {error}", err=True)
    sys.exit(code)
