"""Sources: JSONL, Parquet and CSV files at any fsspec URL, and data sets of the Hugging Face hub; read row by row."""

import csv
import difflib
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, overload

import fsspec

from triptych.data.rows import (
    BadRow,
    DataRow,
    PairRow,
    PromptRow,
    QuestionRow,
    RowKind,
    SftRow,
    SourceRows,
    TaggedRow,
    TextRow,
    parse_pairs,
    parse_pairs_with_margin,
    parse_prompt,
    parse_question,
    parse_sft,
    parse_tags,
    parse_text,
)
from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.recipe.data import Source

Numbered = Iterator[tuple[int, Any]]
"""Pairs of a line (or row) number, from 1, and its record, or a ValueError that says why there is none."""

Parse = Callable[[dict[str, Any]], Sequence[DataRow]]
"""A function from a record to its rows; it raises a ValueError that says what is wrong."""

Check = Callable[[DataRow], DataRow]
"""A function from a row to the row as it is used; it raises a ValueError that says what is wrong."""

PARSERS: dict[RowKind, Parse] = {
    "sft": lambda record: [parse_sft(record)],
    "pairs": parse_pairs,
    "pairs_with_margin": parse_pairs_with_margin,
    "prompts": lambda record: [parse_prompt(record)],
    "texts": lambda record: [parse_text(record)],
    "tags": lambda record: [parse_tags(record)],
    "questions": lambda record: [parse_question(record)],
}
ADDED: dict[str, Any] = {"tools": (), "learned": True, "extra": {}}
"""Fields that rows of earlier versions did not have: they leave a digest as it was where they say nothing."""
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)")
_SHOWN = 5
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Survey:
    """Number, size and digest of a source's rows."""

    rows: int
    size: int
    """Bytes of the rows as JSON."""
    digest: str
    """sha256 of the rows, as in `SourceRows`."""


@overload
def load_rows(source: "Source", kind: Literal["sft"], check: Check | None = None) -> SourceRows[SftRow]: ...
@overload
def load_rows(
    source: "Source", kind: Literal["pairs", "pairs_with_margin"], check: Check | None = None
) -> SourceRows[PairRow]: ...
@overload
def load_rows(source: "Source", kind: Literal["prompts"], check: Check | None = None) -> SourceRows[PromptRow]: ...
@overload
def load_rows(source: "Source", kind: Literal["texts"], check: Check | None = None) -> SourceRows[TextRow]: ...
@overload
def load_rows(source: "Source", kind: Literal["tags"], check: Check | None = None) -> SourceRows[TaggedRow]: ...
@overload
def load_rows(source: "Source", kind: Literal["questions"], check: Check | None = None) -> SourceRows[QuestionRow]: ...
def load_rows(source: "Source", kind: RowKind, check: Check | None = None) -> SourceRows[Any]:
    """Read the source's rows as `kind`. A row of the file can be several pairs; `source.limit` counts the file's.

    Raises UserError for a source that cannot be read, one without a usable row, and one with more malformed rows than
    `source.max_bad_rows` (the message counts them and shows the first five). A row that `check` refuses is malformed.
    """
    bad: list[BadRow] = []
    parse = PARSERS[kind]
    checked = parse if check is None else lambda record: [check(row) for row in parse(record)]
    parts = list(iterate_rows(source, checked, bad))
    _judge(source, kind, len(parts), bad)
    items = [row for rows in parts for row in rows]
    return SourceRows(items, _digest(items)[0], bad)


def survey(source: "Source", kind: str, parse: Parse) -> Survey:
    """Read the source once, keeping no row. Raises as `load_rows` does; `kind` is how its message names the rows."""
    bad: list[BadRow] = []
    used = 0

    def rows() -> Iterator[DataRow]:
        nonlocal used
        for part in iterate_rows(source, parse, bad):
            used += 1
            yield from part

    digest, size, count = _digest(rows())
    _judge(source, kind, used, bad)
    return Survey(count, size, digest)


def quick_count(source: "Source") -> int | None:
    """Number of rows of a local file, `limit` applied; None where it is elsewhere, not there yet, or a stage's output.

    Malformed rows count, and answers with scores count once however many pairs they make.
    """
    import pyarrow.parquet as pq

    if source.stage is not None:
        return None
    path = Path(source.file)
    if not path.is_file():
        return None
    if path.suffix == ".parquet":
        rows = int(pq.read_metadata(path).num_rows)
    elif path.suffix in (".jsonl", ".csv"):
        with path.open("rb") as file:
            rows = sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))
        rows -= path.suffix == ".csv"
    else:
        return None
    return min(rows, source.limit) if source.limit else rows


def iterate_rows(source: "Source", parse: Parse, bad: list[BadRow]) -> Iterator[Sequence[DataRow]]:
    """The rows of each usable row of the file, up to `source.limit` of the file's; malformed ones go to `bad`."""
    used = 0
    for line, record in _records(source):
        try:
            if isinstance(record, ValueError):
                raise record
            rows = parse(_renamed(record, source.columns))
        except ValueError as error:
            bad.append(BadRow(line, str(error)))
            continue
        yield rows
        used += 1
        if used == source.limit:
            break


def _digest(rows: Iterable[DataRow]) -> tuple[str, int, int]:
    """The sha256 of the rows as JSON lines, their bytes, and their number."""
    digest = hashlib.sha256()
    size = count = 0
    for row in rows:
        line = json.dumps(_learned(row), sort_keys=True, default=_given).encode() + b"\n"
        digest.update(line)
        size += len(line)
        count += 1
    return digest.hexdigest(), size, count


def _learned(row: DataRow) -> dict[str, Any]:
    """The row without what only rewards read of it, so that a new column of a file does not end a run."""
    return {name: value for name, value in _given(row).items() if name != "fields"}


def _given(value: Any) -> dict[str, Any]:
    """A row's or message's fields; one that a later version added counts where it is not what it is by default."""
    found = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: item for name, item in found.items() if name not in ADDED or item != ADDED[name]}


def _judge(source: "Source", kind: str, good: int, bad: list[BadRow]) -> None:
    shown = "".join(f"\n  line {row.line}: {row.reason}" for row in bad[:_SHOWN])
    if len(bad) > _SHOWN:
        shown += f"\n  and {len(bad) - _SHOWN} more"
    if len(bad) > source.max_bad_rows:
        raise UserError(
            f"{source.file}: {len(bad)} of {good + len(bad)} rows are malformed as {kind} "
            f"(max_bad_rows allows {source.max_bad_rows}):{shown}"
        )
    if good == 0:
        raise UserError(f"{source.file}: no usable row" + (f"; all {len(bad)} are malformed:{shown}" if bad else ""))


def _renamed(record: Any, columns: dict[str, str]) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise ValueError(f"a JSON {type(record).__name__} in place of an object")
    for ours, theirs in columns.items():
        if theirs not in record:
            has = ", ".join(map(str, record))
            raise ValueError(f"no {theirs!r}, which `columns` names for {ours!r}; the row has: {has}")
    return record | {ours: record[theirs] for ours, theirs in columns.items()}


def _records(source: "Source") -> Numbered:
    if source.file.startswith("hf://"):
        yield from _hub(source)
        return
    suffix = PurePosixPath(source.file).suffix.lower()
    if suffix not in _READERS:
        raise UserError(f"{source.file}: {suffix or 'no'} file suffix; allowed: {', '.join(_READERS)}, hf://owner/name")
    try:
        with fsspec.open(source.file, "rb") as stream:
            yield from _READERS[suffix](stream, source.file)
    except FileNotFoundError:
        raise UserError(f"{source.file}: no such file{_near(source.file)}") from None
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"{source.file}: cannot be read: {error}") from error


def _near(path: str) -> str:
    """` (did you mean ...?)`, from the names in the same folder."""
    try:
        fs, inner = fsspec.url_to_fs(path)
        folder, _, name = inner.rpartition("/")
        names = [entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(folder, detail=False)]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(name, names, n=3)
    return f" (did you mean {', '.join(near)}?)" if near else ""


def _jsonl(stream: BinaryIO, path: str) -> Numbered:
    for line, data in enumerate(stream, start=1):
        if line == 1:
            data = _without_bom(data, path)
        if not data.strip():
            continue
        try:
            yield line, json.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield line, ValueError(f"not UTF-8 at byte {error.start} of the line")
        except RecursionError:
            yield line, ValueError("nested too deeply")
        except ValueError as error:
            yield line, ValueError(f"not JSON: {error}")


def _csv(stream: BinaryIO, path: str) -> Numbered:
    def lines() -> Iterator[str]:
        for number, data in enumerate(stream, start=1):
            try:
                yield (_without_bom(data, path) if number == 1 else data).decode("utf-8")
            except UnicodeDecodeError as error:
                raise UserError(f"{path}: line {number} is not UTF-8 (byte {error.start}); save it as UTF-8") from None

    reader = csv.DictReader(lines(), strict=True)
    line = 2
    try:
        for record in reader:
            whole = None not in record and None not in record.values()
            yield line, record if whole else ValueError(f"not {len(reader.fieldnames or ())} fields, as in the header")
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: line {line} is not CSV: {error}") from error


def _parquet(stream: BinaryIO, path: str) -> Numbered:
    import pyarrow
    import pyarrow.parquet

    number = itertools.count(1)
    try:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024):
            for record in batch.to_pylist():
                yield next(number), record
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from error


def _hub(source: "Source") -> Numbered:
    match = _HUB.fullmatch(source.file)
    if not match:
        raise UserError(f"{source.file}: a data set of the Hugging Face hub is written hf://owner/name")
    import datasets

    try:
        yield from enumerate(datasets.load_dataset(match[1], split=source.split, streaming=True), start=1)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{source.file} (split {source.split}): cannot be read: {error}") from error


def _without_bom(data: bytes, path: str) -> bytes:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: the file is UTF-16; save it as UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf")


_READERS: dict[str, Callable[[BinaryIO, str], Numbered]] = {".jsonl": _jsonl, ".parquet": _parquet, ".csv": _csv}
