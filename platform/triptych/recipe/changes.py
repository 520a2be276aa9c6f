"""Differences between what a folder was begun from and what is asked for now."""

from typing import Any

_SHOWN = 5


def differences(before: Any, now: Any) -> str:
    """The first few differing fields of two JSON values, as `a.b: 1 -> 2`; empty where they are equal."""
    one, other = _flat(before), _flat(now)
    differing = sorted(key for key in one | other if one.get(key) != other.get(key))
    return ", ".join(f"{key}: {one.get(key)!r} -> {other.get(key)!r}" for key in differing[:_SHOWN])


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {path: value}
    return {k: v for key, item in value.items() for k, v in _flat(item, f"{path}.{key}" if path else key).items()}
