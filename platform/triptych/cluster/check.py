"""What a look at a machine or a cluster found."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One line: what was looked at, what was found, and what to do where it is not `ok`."""

    name: str
    status: Literal["ok", "warning", "missing"]
    found: str
    advice: str = ""


def installed(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
