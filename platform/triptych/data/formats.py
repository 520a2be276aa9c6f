"""Formats of files of rows: each reader turns an open stream into numbered records, and what is broken into reasons."""

import csv
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

from triptych.data.cells import DECODER, RepeatedNameError
from triptych.data.class_names import Names, class_names, named
from triptych.errors import UserError

if TYPE_CHECKING:
    import pyarrow

Numbered = Iterator[tuple[int, Any]]
"""Pairs of a line (or row) number, from 1, and its record, or a ValueError that says why there is none."""

_BATCH = 1024


@dataclass(frozen=True, slots=True)
class Format:
    """How files of one suffix are read."""

    read: Callable[[IO[bytes], str], Numbered]
    """An open stream, and the path that messages name."""
    by_row: bool = False
    """True if rows are counted, not lines."""
    table: bool = False
    """True if a folder of such files is one table."""


def read_jsonl(stream: IO[bytes], path: str) -> Numbered:
    """One JSON value a line."""
    yield from _json_lines(stream, path)


def _json_lines(lines: Iterable[bytes], path: str) -> Numbered:
    for line, data in enumerate(lines, start=1):
        if line == 1:
            data = _without_bom(data, path)
        if not data.strip():
            continue
        try:
            yield line, DECODER.decode(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield line, ValueError(f"not UTF-8 at byte {error.start} of the line")
        except RecursionError:
            yield line, ValueError("nested too deeply")
        except RepeatedNameError as error:
            yield line, error
        except ValueError as error:
            yield line, ValueError(f"not JSON: {error}")


def read_json(stream: IO[bytes], path: str) -> Numbered:
    """One JSON array, one JSON value a line, or one object: a row, or its `data` where that is a list of rows."""
    first = _without_bom(stream.readline(), path)
    while first and not first.strip():
        first = stream.readline()
    if first.lstrip().startswith(b"["):
        yield from _array(first + stream.read(), path)
    elif _is_json(first) and (second := next(filter(bytes.strip, stream), b"")):
        yield from _json_lines(filter(bytes.strip, itertools.chain([first, second], stream)), path)
    elif first:
        yield from _object(first + stream.read(), path)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _object(data: bytes, path: str) -> Numbered:
    """The rows of a file that is one value, if it is one."""
    if not _is_json(data):
        raise UserError(f"{path}: neither a JSON array of rows, nor one JSON object a line, nor one object")
    try:
        value = DECODER.decode(data.decode("utf-8"))
    except RepeatedNameError as error:
        raise UserError(f"{path}: {error}") from None
    rows = value.get("data") if isinstance(value, dict) else None
    if isinstance(rows, list) and rows and all(isinstance(row, dict) for row in rows):
        yield from enumerate(rows, start=1)
    else:
        yield 1, value


def _array(data: bytes, path: str) -> Numbered:
    """The elements of an array, decoded one by one."""
    text = _decoded(data, path)
    at, number = _next(text, text.index("[") + 1), 0
    while text[at : at + 1] != "]":
        number += 1
        value, at = _element(text, at, f"{path}: row {number}")
        yield number, value
        at = _next(text, at)
        if text[at : at + 1] == ",":
            at = _next(text, at + 1)
        elif text[at : at + 1] != "]":
            raise UserError(f"{path}: no comma behind row {number}, and nothing behind it can be read")
    if text[at + 1 :].strip():
        raise UserError(f"{path}: there is more behind the array's end, after row {number}")


def _element(text: str, at: int, where: str) -> tuple[Any, int]:
    """The value that begins there, and the place behind it."""
    try:
        return DECODER.raw_decode(text, at)
    except RepeatedNameError as error:
        return error, json.JSONDecoder().raw_decode(text, at)[1]
    except RecursionError:
        raise UserError(f"{where} is nested too deeply, and nothing behind it can be read") from None
    except ValueError as error:
        raise UserError(f"{where} is not JSON, and nothing behind it can be read: {error}") from None


def _decoded(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path}: line {line} is not UTF-8 (byte {error.start} of the file); save it as UTF-8"
        ) from None


def _next(text: str, at: int) -> int:
    """The next place that is no white space."""
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def read_csv(stream: IO[bytes], path: str) -> Numbered:
    """Comma-separated values behind a header, quoted where they hold commas, quotes or line ends."""
    csv.field_size_limit(sys.maxsize)  # a cell may hold megabytes
    lines = _Lines(stream, path)
    reader = csv.reader(lines, strict=True)
    line = 1
    try:
        header = _header(next(reader, []), path, ",")
        line = reader.line_num + 1
        for cells in reader:
            if cells:
                yield line, lines.taken() or _record(header, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}: line {line} is not CSV: {error}") from error


def read_tsv(stream: IO[bytes], path: str) -> Numbered:
    """Tab-separated values behind a header, one row a line. Quotes are text, but where a writer of CSV put them."""
    lines = _Lines(stream, path)
    header = _header([_unquoted(cell) for cell in _cells(next(iter(lines), ""))], path, "\t")
    for number, line in enumerate(lines, start=2):
        broken = lines.taken()
        if line.strip("\r\n"):
            yield number, broken or _record(header, [_unquoted(cell) for cell in _cells(line)])


def _cells(line: str) -> list[str]:
    return line.rstrip("\r\n").split("\t")


def _unquoted(cell: str) -> str:
    """The cell without the quotes of a writer of CSV, which doubles those inside."""
    inside = cell[1:-1]
    if len(cell) < 2 or cell[0] != '"' or cell[-1] != '"' or '"' in inside.replace('""', ""):
        return cell
    return inside.replace('""', '"')


class _Lines:
    """Decoded lines; what is not UTF-8 is kept for the row that it stands in."""

    def __init__(self, stream: Iterable[bytes], path: str) -> None:
        self._lines = enumerate(stream, start=1)
        self._path = path
        self._broken: ValueError | None = None

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        number, data = next(self._lines)
        if number == 1:
            data = _without_bom(data, self._path)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            if number == 1:
                raise UserError(f"{self._path}: line 1 is not UTF-8 (byte {error.start}); save it as UTF-8") from None
            self._broken = self._broken or ValueError(f"not UTF-8 at byte {error.start} of line {number}")
            return data.decode("utf-8", "replace")

    def taken(self) -> ValueError | None:
        """What was broken since the last call."""
        broken, self._broken = self._broken, None
        return broken


def _header(names: list[str], path: str, separator: str) -> list[str]:
    _check_names(names, path)
    other = next((mark for mark in ("\t", ";", ",") if mark != separator and names and mark in names[0]), None)
    if len(names) == 1 and other is not None:
        raise UserError(f"{path}: {separator!r} separates its columns, and the header has {other!r} instead")
    return names


def _check_names(names: list[str], path: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UserError(f"{path}: two columns are called {', '.join(map(repr, twice))}; give each a name of its own")


def _record(header: list[str], cells: list[str]) -> dict[str, str] | ValueError:
    if len(cells) != len(header):
        return ValueError(f"not {len(header)} fields, as in the header")
    return dict(zip(header, cells, strict=True))


def read_parquet(stream: IO[bytes], path: str) -> Numbered:
    """The rows of a Parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(stream)
        _check_names(file.schema_arrow.names, path)
        yield from _rows(file.iter_batches(batch_size=_BATCH), class_names(file.schema_arrow.metadata))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file: {error}") from error


def read_arrow(stream: IO[bytes], path: str) -> Numbered:
    """The rows of an Arrow file, or of an Arrow stream."""
    import pyarrow

    try:
        schema, batches = _arrow_batches(stream)
        _check_names(schema.names, path)
        yield from _rows(batches, class_names(schema.metadata))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Arrow file: {error}") from error


def _arrow_batches(stream: IO[bytes]) -> tuple["pyarrow.Schema", Iterable["pyarrow.RecordBatch"]]:
    import pyarrow

    if stream.read(6) == b"ARROW1":
        reader = pyarrow.ipc.open_file(stream)
        return reader.schema, (reader.get_batch(index) for index in range(reader.num_record_batches))
    stream.seek(0)
    batches = pyarrow.ipc.open_stream(stream)
    return batches.schema, batches


def _rows(batches: Iterable["pyarrow.RecordBatch"], names: Mapping[str, Names]) -> Numbered:
    number = itertools.count(1)
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            for record in _records(batch.slice(start, _BATCH)):
                yield next(number), named(record, names)


def _records(batch: "pyarrow.RecordBatch") -> list[Any]:
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError):  # text that is no UTF-8, a time that Python has no form for
        return [_one(batch, row) for row in range(batch.num_rows)]


def _one(batch: "pyarrow.RecordBatch", row: int) -> dict[str, Any] | ValueError:
    record = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            record[name] = column[row].as_py()
        except (ValueError, OverflowError) as error:
            return ValueError(f"{name}: cannot be read: {error}")
    return record


def read_conll(stream: IO[bytes], path: str) -> Numbered:
    """CoNLL's lines: a word with its tag, an empty line behind each sentence; numbered by a sentence's first line.

    Columns are separated by a tab, or by white space. `tokens` is the first, `tags` the last; those between them, and
    the last as well, are `column_2` and so on.
    """
    width = 0
    for start, lines in _sentences(stream, path):
        rows = [line if isinstance(line, ValueError) else _columns(line) for line in lines]
        broken = next((row for row in rows if isinstance(row, ValueError)), None)
        cells = [row for row in rows if isinstance(row, list)]
        width = width or max(len(cells[0]) if cells else 0, 2)
        odd = next((start + place for place, row in enumerate(cells) if len(row) != width), None)
        if broken is None and odd is not None:
            broken = ValueError(f"line {odd} has not {width} columns, as the first of the file; the last is the tag")
        yield start, broken or _sentence(cells)


def _sentences(stream: IO[bytes], path: str) -> Iterator[tuple[int, list[str | ValueError]]]:
    """Number of the first line, and lines, of each sentence."""
    found: list[str | ValueError] = []
    start = 1
    lines = _Lines(stream, path)
    for number, line in enumerate(lines, start=1):
        broken = lines.taken()
        blank = broken is None and not line.strip(" \t\r\n")
        if not found:
            start = number
        if not blank and not line.startswith("-DOCSTART-"):
            found.append(broken or line.rstrip("\r\n"))
        elif found:
            yield start, found
            found = []
    if found:
        yield start, found


def _columns(line: str) -> list[str]:
    return line.split("\t") if "\t" in line else line.split()


def _sentence(rows: list[list[str]]) -> dict[str, list[str]]:
    columns = [list(column) for column in zip(*rows, strict=True)]
    named = {f"column_{place}": column for place, column in enumerate(columns[1:], start=2)} if len(columns) > 2 else {}
    return named | {"tokens": columns[0], "tags": columns[-1]}


def _without_bom(data: bytes, path: str) -> bytes:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: the file is UTF-16; save it as UTF-8")
    return data.removeprefix(b"\xef\xbb\xbf")


CONLL = Format(read_conll)
FORMATS = {
    ".jsonl": Format(read_jsonl),
    ".json": Format(read_json, by_row=True),
    ".csv": Format(read_csv),
    ".tsv": Format(read_tsv),
    ".parquet": Format(read_parquet, by_row=True, table=True),
    ".arrow": Format(read_arrow, by_row=True, table=True),
    ".conll": CONLL,
    ".bio": CONLL,
    ".txt": CONLL,
}
"""Formats by suffix of a file's name."""
