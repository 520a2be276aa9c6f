"""One self-contained HTML page for a run: curves, samples before and after, measured numbers, lineage, recipe."""

from triptych.observe.report.page import write_report

__all__ = ["write_report"]
