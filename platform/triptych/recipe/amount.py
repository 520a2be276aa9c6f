"""Amounts of memory as people write them."""

from typing import Annotated

from pydantic import AfterValidator

_UNITS = {"gib": 2**30, "mib": 2**20, "gb": 10**9, "mb": 10**6}


def bytes_of(text: str) -> int:
    """Bytes of `8GB`, `7.5GiB` or `900MB`.

    Raises:
        ValueError: it is no such amount.
    """
    lower = text.strip().lower()
    unit = next((unit for unit in _UNITS if lower.endswith(unit)), None)
    try:
        amount = float(lower.removesuffix(unit)) if unit else 0.0
    except ValueError:
        amount = 0.0
    if unit is None or not 0 < amount < float("inf"):
        raise ValueError(f"`{text}` is no amount of memory; allowed: a number above 0 with GB, GiB, MB or MiB, as 8GB")
    return int(amount * _UNITS[unit])


def _checked(text: str) -> str:
    bytes_of(text)
    return text


Amount = Annotated[str, AfterValidator(_checked)]
"""A memory size such as `8GB`, validated and kept as text."""
