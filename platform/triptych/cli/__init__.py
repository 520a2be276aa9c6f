"""The `triptych` command: one verb for each thing a person does.

Results go to stdout, logs and errors to stderr. Exit code 0; 1 where it failed; 2 where the request was wrong; 130
after Ctrl-C. Verbs import torch, ray and vllm inside their functions, so that `--help` answers at once.
"""

import sys
from typing import Annotated

import typer

from triptych import __version__
from triptych.cli import adapters, data, keys, runs
from triptych.cli.doctor import doctor
from triptych.cli.methods import methods
from triptych.cli.models import models
from triptych.cli.plan import plan
from triptych.cli.run import run
from triptych.cli.serve import serve
from triptych.cli.sweep import sweep
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


app.command("doctor")(doctor)
app.command("plan")(plan)
app.command("methods")(methods)
app.command("models")(models)
app.command("run")(run)
app.command("sweep")(sweep)
app.command("serve")(serve)
app.add_typer(adapters.app, name="adapters")
app.add_typer(keys.app, name="keys")
app.add_typer(runs.app, name="runs")
app.add_typer(data.app, name="data")


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
