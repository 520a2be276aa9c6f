"""Metrics of a stage as JSONL segments, one a checkpoint: no appends, so that any object store will do."""

import json
import math
from collections.abc import Mapping
from typing import Any

from triptych import storage

_FOLDER = "metrics"
_RENAMED = {"canary_gap": "sync_gap"}
"""Name in logs of earlier versions -> present name."""


class MetricsLog:
    """Rows since the last flush, in memory; a flush writes them as `metrics/step-NNNNNNNN.jsonl`."""

    def __init__(self, folder: str) -> None:
        self._url = storage.join(folder, _FOLDER)
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        """Add a row of numbers with its `step`."""
        self._rows.append(row)

    def flush(self, step: int) -> None:
        """Write the rows up to `step`; the same segment again replaces it. What is no finite number becomes null."""
        if self._rows:
            text = "".join(json.dumps(plain(row)) + "\n" for row in self._rows)
            storage.write_bytes(storage.join(self._url, f"step-{step:08d}.jsonl"), text.encode())
            self._rows = []

    def truncate(self, after_step: int) -> None:
        """Drop the segments after a step: a resumed stage writes them again."""
        for name in storage.list_files(self._url):
            if _last_step(name) > after_step:
                storage.remove(storage.join(self._url, name))


def read_metrics(folder: str) -> list[dict[str, Any]]:
    """All rows of a stage by step, NaN where a segment has null; columns with a former name under the present one."""
    url = storage.join(folder, _FOLDER)
    segments = [storage.read_bytes(storage.join(url, name)) for name in sorted(storage.list_files(url))]
    rows = [json.loads(line) for segment in segments for line in segment.splitlines()]
    return [
        {_RENAMED.get(key, key): math.nan if value is None else value for key, value in row.items()} for row in rows
    ]


def plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with None in place of NaN and infinity, for which JSON has no word."""
    return {key: value if _is_plain(value) else None for key, value in row.items()}


def _is_plain(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _last_step(name: str) -> int:
    return int(name.removeprefix("step-").removesuffix(".jsonl"))
