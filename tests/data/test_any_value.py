"""Any value in any cell of any format is a row, a counted bad row, or a refusal: never another exception."""

import csv
import datetime
import decimal
import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from triptych.data.rows import PairRow, QuestionRow, TaggedRow, TextRow
from triptych.data.shapes import SHAPES
from triptych.data.sources import PARSERS, load_rows, survey
from triptych.errors import UserError
from triptych.recipe.data import Source

COLUMNS = sorted({name for shapes in SHAPES.values() for shape in shapes for name in (*shape.needs, *shape.uses)})
WORDS = ("Hi", "", " ", "user", "assistant", "text", "\n\nHuman: a\n\nAssistant: b", "\n\nHuman:", '[{"role": "user"}]')
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([10**400, -(10**400), 2**63, 1e308, -1e308, math.inf, math.nan, "1e999", "\ud800", "\x00"]),
    st.floats(),
    st.sampled_from(WORDS),
    st.text(st.characters(), max_size=8),
)
KEYS = st.sampled_from(
    ["role", "content", "from", "value", "text", "type", "answer_start", "weight", "tool_calls", "x"]
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant", "system", "tool"]) | VALUES, "content": st.just("Hi") | VALUES}
    ),
    max_size=3,
)
CELLS = VALUES | MESSAGES | MESSAGES.map(json.dumps) | st.text("\n Human:Assistant", max_size=40)
SHAPED = st.sampled_from([(kind, shape) for kind, shapes in SHAPES.items() for shape in shapes])


@st.composite
def records(draw: st.DrawFn) -> dict[str, Any]:
    """A row with the columns of a shape, and perhaps others, and anything in them."""
    _, shape = draw(SHAPED)
    more = draw(st.lists(st.sampled_from(COLUMNS) | st.text(max_size=4), max_size=3))
    return {name: draw(CELLS) for name in (*shape.needs, *more)}


def _read(path: Path, columns: dict[str, str] | None = None) -> None:
    """Read the file as each kind; what comes is a row with a digest, or a message that can be written."""
    refused: list[bytes] = []
    for kind in PARSERS:
        try:
            rows = load_rows(Source(path=str(path), max_bad_rows=10**6, columns=columns or {}), kind)
        except UserError as error:
            refused.append(str(error).encode())
            continue
        for row in rows.items:
            _check(row)
        for bad in rows.bad:
            assert bad.line >= 1
            assert len(bad.reason) < 400
            assert bad.reason.isprintable()
    assert all(len(message) < 10_000 for message in refused)


def _check(row: Any) -> None:
    """What every stage may take for granted."""
    if isinstance(row, PairRow):
        assert row.chosen != row.rejected
        assert row.margin is None or math.isfinite(row.margin)
    texts = (
        [*row.tokens, *row.tags]
        if isinstance(row, TaggedRow)
        else [row.text, row.label]
        if isinstance(row, TextRow)
        else [row.question, row.context, *row.answers]
        if isinstance(row, QuestionRow)
        else [message.content for message in getattr(row, "messages", getattr(row, "prompt", ()))]
    )
    for text in texts:
        text.encode()


SLOWER = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@SLOWER
@given(st.lists(records(), min_size=1, max_size=4))
@example([{"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": 10**400}])
@example([{"prompt": "Hi", "answers": ["a", "b"], "scores": [1e308, -1e308]}])
@example([{"messages": [{"role": [], "content": {}}], "text": "\ud800", "label": "9" * 5000}])
def test_any_json(tmp_path: Path, rows: list[Any]) -> None:
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    _read(tmp_path / "a.jsonl")
    _read(tmp_path / "a.json")


@pytest.mark.slow
@SLOWER
@given(records(), st.dictionaries(st.sampled_from(["prompt", "response", "chosen", "text"]), st.sampled_from(COLUMNS)))
def test_any_renaming(tmp_path: Path, row: dict[str, Any], columns: dict[str, str]) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    _read(tmp_path / "a.jsonl", columns)


@pytest.mark.slow
@SLOWER
@given(st.lists(records(), min_size=1, max_size=4))
def test_any_cell_of_csv_and_tsv(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    names = sorted({name for row in rows for name in row})
    for suffix, dialect in (("csv", "excel"), ("tsv", "excel-tab")):
        path = tmp_path / f"a.{suffix}"
        with path.open("w", newline="", errors="surrogatepass") as stream:
            writer = csv.writer(stream, dialect)
            writer.writerow(names)
            writer.writerows([[_cell(row.get(name)) for name in names] for row in rows])
        _read(path)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@SLOWER
@given(st.sampled_from(["jsonl", "json", "csv", "tsv", "txt", "jsonl.gz", "jsonl.zst", "zip", "arrow"]), st.binary())
def test_any_bytes(tmp_path: Path, suffix: str, data: bytes) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(data)
    _read(tmp_path / f"a.{suffix}")


@SLOWER
@given(
    st.sampled_from(["csv", "tsv", "txt", "jsonl"]), st.text(st.sampled_from('a\t",\n\r {}[]:O-B\ufeff\u3000中\x00'))
)
def test_any_text(tmp_path: Path, suffix: str, text: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes(f"prompt\tlabel,text\n{text}".encode())
    _read(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}.gz").write_bytes(gzip.compress(text.encode()))
    _read(tmp_path / f"a.{suffix}.gz")


ARRAYS: dict[str, Callable[[], pa.Array]] = {
    "null": lambda: pa.nulls(2),
    "bool": lambda: pa.array([True, None]),
    "large": lambda: pa.array([2**64 - 1, 0], pa.uint64()),
    "float": lambda: pa.array([math.nan, -math.inf]),
    "decimal": lambda: pa.array([decimal.Decimal("9" * 70), None], pa.decimal256(76)),
    "date": lambda: pa.array([datetime.date(1, 1, 1), None]),
    "time": lambda: pa.array([2**62, -(2**62)], pa.int64()).cast(pa.timestamp("s")),
    "nanoseconds": lambda: pa.array([2**62 + 1, 1], pa.int64()).cast(pa.timestamp("ns", "UTC")),
    "duration": lambda: pa.array([2**62, -1], pa.int64()).cast(pa.duration("s")),
    "binary": lambda: pa.array([b"\xff", None]),
    "dictionary": lambda: pa.array(["a", "b"]).dictionary_encode(),
    "list": lambda: pa.array([[["a"]], None]),
    "struct": lambda: pa.array([{"text": ["x"], "answer_start": [0]}, None]),
    "messages": lambda: pa.array([[{"role": "user", "content": None, "x": 1}], []]),
    "map": lambda: pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
    "text": lambda: pa.array(["Hi", ""]),
    "no text": lambda: pa.StringArray.from_buffers(2, *pa.array([b"\xff", b"a"], pa.binary()).buffers()[1:]),
}


@pytest.mark.slow
@SLOWER
@given(SHAPED, st.data())
def test_any_column_of_parquet_and_arrow(tmp_path: Path, shaped: tuple[str, Any], data: st.DataObject) -> None:
    names = (*shaped[1].needs, "margin")
    table = pa.table({name: ARRAYS[data.draw(st.sampled_from(sorted(ARRAYS)))]() for name in names})
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    _read(tmp_path / "a.arrow")
    beyond = [name for name in names if table.schema.field(name).type in (pa.duration("s"), pa.timestamp("s"))]
    pa.parquet.write_table(table.drop_columns(beyond), tmp_path / "a.parquet")
    _read(tmp_path / "a.parquet")


@pytest.mark.parametrize("place", range(0, 700, 7))
def test_any_changed_byte_of_parquet(tmp_path: Path, place: int) -> None:
    pa.parquet.write_table(pa.table({"prompt": ["Hi", "Ho"], "response": ["a", "b"]}), tmp_path / "a.parquet")
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    content[place % len(content)] ^= 0xFF
    (tmp_path / "a.parquet").write_bytes(content)
    _read(tmp_path / "a.parquet")


def test_values_nested_as_deeply_as_json_allows(tmp_path: Path) -> None:
    for depth in (100, 900, 950, 990, 5000):
        deep = "[" * depth + "]" * depth
        rows = [f'{{"prompt": {deep}, "response": "a"}}', f'{{"messages": [{{"role": {deep}, "content": {deep}}}]}}']
        (tmp_path / "a.jsonl").write_text("\n".join([*rows, f'{{"text": "a", "label": {deep}, "tokens": {deep}}}']))
        _read(tmp_path / "a.jsonl")


def test_a_survey_of_any_rows_counts_as_load_rows_does(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "Hi"}\n{"prompt": NaN}\n{"prompt": ["\\ud800"]}\n')
    source = Source(path=str(path), max_bad_rows=2)
    assert survey(source, "prompts", PARSERS["prompts"]).digest == load_rows(source, "prompts").digest
