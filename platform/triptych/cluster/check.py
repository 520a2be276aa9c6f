"""A finding of `doctor`."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One line of `doctor`: what was examined, what was found, and advice if it is not `ok`."""

    name: str
    status: Literal["ok", "warning", "missing"]
    found: str
    advice: str = ""


def installed(name: str) -> str | None:
    """Version of an installed package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
