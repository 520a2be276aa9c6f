"""Encoded rows as one committed Arrow file: what exactly was trained on, readable without us.

Readers map the file into memory, so a row costs what it holds, however large the file is.
"""

import bisect
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from triptych import storage

T = TypeVar("T")

_FILE = "rows.arrow"


@dataclass(frozen=True)
class Table:
    """Equally long columns, and the digest of the rows that they were encoded from."""

    columns: Mapping[str, Sequence[Any]]
    digest: str


class StoredTable:
    """A committed table, read row by row."""

    def __init__(self, url: str) -> None:
        reader = pa.ipc.open_file(pa.memory_map(str(storage.local_copy(url) / _FILE)))
        self._blocks = [reader.get_batch(index) for index in range(reader.num_record_batches)]
        self._starts = list(itertools.accumulate((block.num_rows for block in self._blocks), initial=0))

    def __len__(self) -> int:
        return self._starts[-1]

    def cell(self, column: str, row: int) -> Any:
        """One value; a list of numbers as such."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        block = bisect.bisect_right(self._starts, row) - 1
        value = self._blocks[block].column(column)[row - self._starts[block]]
        return value.values.to_numpy().tolist() if isinstance(value, pa.ListScalar) else value.as_py()

    def lengths(self, column: str) -> NDArray[np.int64]:
        """Length of each row's list; the lists themselves are not read."""
        offsets = [np.diff(block.column(column).offsets.to_numpy()) for block in self._blocks]
        return np.concatenate(offsets).astype(np.int64) if offsets else np.zeros(0, np.int64)


@dataclass(frozen=True)
class Lazy(Sequence[T], Generic[T]):
    """A sequence whose items are made when they are asked for."""

    length: int
    make: Callable[[int], T]

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T]: ...
    def __getitem__(self, index: int | slice) -> T | Sequence[T]:
        if isinstance(index, slice):
            return [self.make(item) for item in range(self.length)[index]]
        return self.make(range(self.length)[index])


def write_table(url: str, table: Table) -> None:
    """Commit a table as `url`; a committed one stays as it is."""
    if storage.read_manifest(url) is None:
        write_blocks(url, [pa.table(dict(table.columns))])


def write_blocks(url: str, blocks: Iterable[pa.Table]) -> None:
    """Commit the rows of all blocks, in order, as `url`. Nothing is committed where the iterator raises."""
    blocks = iter(blocks)
    first = next(blocks)
    with storage.committed(url) as staging, pa.ipc.new_file(str(staging / _FILE), first.schema) as writer:
        for block in itertools.chain([first], blocks):
            writer.write_table(block.combine_chunks())


def read_table(url: str) -> dict[str, list[Any]]:
    """The columns of a committed table, whole."""
    with pa.ipc.open_file(pa.memory_map(str(storage.local_copy(url) / _FILE))) as reader:
        columns: dict[str, list[Any]] = reader.read_all().to_pydict()
    return columns
