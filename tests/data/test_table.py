"""Tables are read row by row as they were written, in whatever blocks."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from triptych import storage
from triptych.data.table import Lazy, StoredTable, Table, read_table, write_blocks, write_table
from triptych.errors import UserError

SCHEMA = pa.schema({"ids": pa.list_(pa.int32()), "label": pa.int32()})
BLOCKS = st.lists(st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=4), min_size=1, max_size=5)


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(blocks=BLOCKS)
def test_rows_in_blocks(tmp_path_factory: pytest.TempPathFactory, blocks: list[list[list[int]]]) -> None:
    url = str(tmp_path_factory.mktemp("tables") / "table")
    rows = [row for block in blocks for row in block]
    write_blocks(url, (pa.table({"ids": block, "label": [len(row) for row in block]}, SCHEMA) for block in blocks))
    table = StoredTable(url)
    assert len(table) == len(rows)
    assert [table.cell("ids", row) for row in range(len(rows))] == rows
    assert [table.cell("label", row) for row in range(len(rows))] == table.lengths("ids").tolist()
    assert read_table(url) == {"ids": rows, "label": [len(row) for row in rows]}
    with pytest.raises(IndexError):
        table.cell("ids", len(rows))


def test_a_committed_table_stays(tmp_path: Path) -> None:
    url = str(tmp_path / "table")
    write_table(url, Table({"ids": [[1, 2], [3]]}, "digest"))
    write_table(url, Table({"ids": [[9]]}, "other"))
    assert read_table(url) == {"ids": [[1, 2], [3]]}


def test_nothing_is_committed_of_rows_that_fail(tmp_path: Path) -> None:
    def blocks() -> Iterator[pa.Table]:
        yield pa.table({"ids": [[1]]})
        raise UserError("no more")

    with pytest.raises(UserError, match="no more"):
        write_blocks(str(tmp_path / "table"), blocks())
    assert storage.list_committed(str(tmp_path)) == []


def test_lazy_sequence() -> None:
    made: list[int] = []

    def make(index: int) -> int:
        made.append(index)
        return index * 10

    lazy = Lazy(3, make)
    assert len(lazy) == 3
    assert made == []
    assert lazy[-1] == 20
    assert list(lazy[1:]) == [10, 20]
    assert list(lazy) == [0, 10, 20]
