"""Comparison of a stage's plan with what its metrics measured."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

FILE = "plan.json"
"""File in a stage's folder: `predicted`, and once the stage has ended `actual`."""

_LABELS = {"peak_bytes": "peak memory of a worker", "tokens_per_second": "tokens a second"}


@dataclass(frozen=True)
class Compared:
    """One figure, predicted (with an interval if there is one) and measured."""

    figure: str
    predicted: float
    low: float | None
    high: float | None
    actual: float | None
    """None before the first row of metrics."""

    @property
    def label(self) -> str:
        return _LABELS[self.figure]

    @property
    def ratio(self) -> float | None:
        """Predicted over actual; None before the first row of metrics."""
        return self.predicted / self.actual if self.actual else None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self) | {"ratio": self.ratio}

    def cells(self) -> tuple[str, str, str, str, str]:
        """Label, predicted, its interval, actual and ratio, for a table."""
        span = "" if self.low is None or self.high is None else f"{self._shown(self.low)} - {self._shown(self.high)}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        actual = "" if self.actual is None else self._shown(self.actual)
        return self.label, self._shown(self.predicted), span, actual, ratio

    def _shown(self, value: float) -> str:
        return f"{value / 2**20:,.0f} MiB" if self.figure.endswith("_bytes") else f"{value:,.0f}"


def actual_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Measured figures of a stage by its metrics rows.

    Peak and growth of memory in bytes are the largest of all rows, tokens a second the median. The first row is left
    out of the median if there are more: it includes warm-up.
    """
    if not rows:
        return {}
    found = {"peak_bytes": max((row.get("peak_memory_bytes", 0.0) for row in rows), default=0.0)}
    found["grown_bytes"] = max((row.get("grown_memory_bytes", 0.0) for row in rows), default=0.0)
    speeds = [_speed(row) for row in (rows[1:] if len(rows) > 1 else rows) if "tokens" in row]
    if speeds:
        found["tokens_per_second"] = statistics.median(speeds)
    return {name: value for name, value in found.items() if value > 0}


def compare(predicted: Mapping[str, Any], actual: Mapping[str, float]) -> list[Compared]:
    """Compare what `plan.json` predicted with measured figures."""
    peak = predicted["peak_bytes"]
    return [
        Compared("peak_bytes", peak["expected"], peak["low"], peak["high"], actual.get("peak_bytes")),
        Compared("tokens_per_second", predicted["tokens_per_second"], None, None, actual.get("tokens_per_second")),
    ]


def _speed(row: Mapping[str, Any]) -> float:
    """Tokens a second of a row; rows of PPO have seconds of phases in place of a speed."""
    if "tokens_per_second" in row:
        return float(row["tokens_per_second"])
    seconds = sum(float(value) for name, value in row.items() if name.startswith("seconds_"))
    return float(row["tokens"]) / seconds if seconds > 0 else 0.0
