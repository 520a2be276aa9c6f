"""Encoded rows of a stage as one committed Parquet file: what exactly was trained on, readable without us."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from triptych import storage

_FILE = "rows.parquet"


@dataclass(frozen=True)
class Table:
    """Equally long columns, and the digest of the rows that they were encoded from."""

    columns: Mapping[str, Sequence[Any]]
    digest: str


def write_table(url: str, table: Table) -> None:
    """Commit a table as `url`; a committed one stays as it is."""
    if storage.read_manifest(url) is None:
        with storage.committed(url) as staging:
            pq.write_table(pa.table(dict(table.columns)), staging / _FILE)


def read_table(url: str) -> dict[str, list[Any]]:
    """The columns of a committed table."""
    columns: dict[str, list[Any]] = pq.read_table(storage.local_copy(url) / _FILE).to_pydict()
    return columns
