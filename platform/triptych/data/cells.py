"""Values of single cells: text, lists and numbers, or a ValueError that names the cell and never repeats all of it."""

import json
import math
import reprlib
from typing import Any

LARGEST = 3.4028234e38
"""Largest number that float32 holds."""
_SHOWN = 300

shown = reprlib.repr
"""A value as text of bounded length and depth."""


class RepeatedNameError(ValueError):
    """A JSON object that gives one name two values, of which all but the last would be lost."""


def _distinct(members: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(members)
    if len(found) < len(members):
        names = [name for name, _ in members]
        raise RepeatedNameError(f"two values of {shown(next(name for name in names if names.count(name) > 1))}")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_distinct)
"""JSON as `json.loads` reads it, but for names that an object gives twice: RepeatedNameError."""


def text(value: Any, name: str) -> str:
    """A text that is not blank, and that UTF-8 can write."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: {type(value).__name__} in place of text")
    if not value.strip():
        raise ValueError(f"{name}: empty")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name}: half a surrogate pair, which is no Unicode text") from None
    return value


def texts(values: list[Any], name: str) -> tuple[str, ...]:
    """Texts of a list, each as `text`."""
    try:
        "".join(values).encode()
        if all(map(str.strip, values)):
            return tuple(values)
    except (TypeError, UnicodeEncodeError):
        pass  # the loop below says which and why
    return tuple(text(value, f"{name}[{index}]") for index, value in enumerate(values))


def from_json(value: str, name: str, what: str) -> Any:
    """The value that a cell's JSON text holds."""
    try:
        return DECODER.decode(value)
    except RepeatedNameError as error:
        raise ValueError(f"{name}: {error}") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{name}: neither {what} nor JSON text of one") from None


def listed(value: Any, name: str) -> list[Any]:
    """A list, or JSON text of one."""
    if isinstance(value, str):  # a CSV cell
        value = from_json(value, name, "a list")
    if not isinstance(value, list):
        raise ValueError(f"{name}: {type(value).__name__} in place of a list")
    return value


def finite(value: Any, name: str) -> float:
    """A number that float32 holds."""
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    except (TypeError, ValueError):
        raise ValueError(f"{name}: {shown(value)} is not a number") from None
    if isinstance(value, bool) or not abs(number) <= LARGEST:
        raise ValueError(f"{name}: {shown(value)} is not a finite number")
    return number


def one_line(reason: str) -> str:
    """A reason that any terminal and file can take: bounded, printable, in one line."""
    cut = reason if len(reason) <= _SHOWN else f"{reason[:_SHOWN]}..."
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)
