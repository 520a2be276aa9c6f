"""Functions and classes of the user's that recipes name, as `module:name`."""

from collections.abc import Callable
from pkgutil import resolve_name
from typing import Annotated, Any

from pydantic import Field

from triptych.errors import UserError

FunctionName = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]
"""Name of what the workers can import, as `module:name`."""


def imported(name: str, kind: str) -> Callable[..., Any]:
    """What a `FunctionName` names, which a message calls a `kind`. UserError: it cannot be imported or called."""
    try:
        found = resolve_name(name)
    except Exception as error:
        raise UserError(f"function: {name} cannot be imported: {error}") from error
    if not callable(found):
        raise UserError(f"function: {name} is no {kind}, but {type(found).__name__}")
    function: Callable[..., Any] = found
    return function
