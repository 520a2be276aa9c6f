"""Tables of an evaluation: each model's figures with their intervals, and differences from the first."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def evaluation_table(stage: str, comparison: Mapping[str, Any]) -> "Table":
    """Table of a stage's comparison, a row for each figure of a set."""
    from rich.table import Table

    from triptych.observe.evaluations import cells

    table = Table(title=f"{stage}: figures with 95 % intervals; differences from {comparison['models'][0]}")
    for column in ("set", "rows", "figure", *comparison["models"]):
        table.add_column(column)
    for name, rows, figure, values in cells(comparison):
        table.add_row(name, rows, figure, *("\n".join(value) for value in values))
    return table
