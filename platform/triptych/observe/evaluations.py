"""An evaluation's figures as text, for a terminal and for pages."""

from collections.abc import Iterator, Mapping
from typing import Any

FIGURES = "figures.json"
"""Figures of an evaluation with their intervals, in its artifact."""
ARROWS = {"lower": "↓", "higher": "↑"}
"""Mark of the direction in which a figure is better."""


def cells(comparison: Mapping[str, Any]) -> Iterator[tuple[str, str, str, list[list[str]]]]:
    """Set, its rows, figure, and a cell of each model, as lines: the figure, and its difference from the first's."""
    for name, found in comparison["sets"].items():
        for figure, one in found["figures"].items():
            values = [_lines(one["models"].get(ref)) for ref in comparison["models"]]
            yield name, str(rows_of(found, one)), f"{figure} {ARROWS[one['better']]}", values


def rows_of(found: Mapping[str, Any], figure: Mapping[str, Any]) -> int:
    """Rows of a set that a figure is of; earlier versions wrote down those of the set alone."""
    rows: int = figure.get("rows", found["rows"])
    return rows


def _lines(found: Mapping[str, Any] | None) -> list[str]:
    difference = (found or {}).get("difference")
    return [cell(found), *([f"Δ {cell(difference, sign='+')}"] if difference else [])]


def cell(found: Mapping[str, Any] | None, sign: str = "") -> str:
    """A figure with its interval, as `0.52 (0.48 to 0.56)`; a dash where there is none. `sign`: `+` for differences."""
    if found is None:
        return "–"
    ends = "" if found["low"] is None else f" ({found['low']:{sign}.3g} to {found['high']:{sign}.3g})"
    return f"{found['value']:{sign}.4g}{ends}"
