"""Speed of each reader of files: 10,000 random rows in each format, and in each shape of a row.

    python tests/bench/readers.py [--out build/bench/readers.json] [--rows 10000] [--rounds 3]

Nine rows of ten have the shape, with texts of some hundred characters; in the tenth stands anything: numbers, nulls,
lists, half surrogates. A figure is rows a second of CPU through `load_rows`, parsed and with their digest; `bad rows`
are those that were counted as malformed. Nothing may raise.
"""

import argparse
import csv
import gzip
import io
import json
import random
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet

from harness import Arm, emit, run_benchmark

if TYPE_CHECKING:
    from triptych.data.rows import RowKind

WORDS = ("the", "of", "and", "film", "warm", "dull", "story", "cast", "«ü»", "中文", "é", "'quoted'", '"said"')
ANYTHING: list[Any] = [None, True, -1, 3.5, float("nan"), 10**400, "", " ", "\ud800", [], [[1]], {"a": None}]
Row = dict[str, Any]


def _text(draw: random.Random) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randrange(5, 60)))


def _dialogue(draw: random.Random) -> str:
    return f"\n\nHuman: {_text(draw)}\n\nAssistant: {_text(draw)}"


def _pair(draw: random.Random) -> Row:
    asked = f"\n\nHuman: {_text(draw)}\n\nAssistant: "
    return {"chosen": asked + _text(draw), "rejected": asked + _text(draw)}


def _messages(draw: random.Random) -> list[Row]:
    return [{"role": role, "content": _text(draw)} for role in ("user", "assistant")]


SHAPES: dict[str, tuple["RowKind", Callable[[random.Random], Row]]] = {
    "prompt and response": ("sft", lambda draw: {"prompt": _text(draw), "response": _text(draw)}),
    "messages": ("sft", lambda draw: {"messages": _messages(draw)}),
    "parts": (
        "sft",
        lambda draw: {"messages": [m | {"content": [{"type": "text", "text": m["content"]}]} for m in _messages(draw)]},
    ),
    "alpaca": ("sft", lambda draw: {"instruction": _text(draw), "input": _text(draw), "output": _text(draw)}),
    "ShareGPT": (
        "sft",
        lambda draw: {"conversations": [{"from": who, "value": _text(draw)} for who in ("human", "gpt")]},
    ),
    "question and answer": ("sft", lambda draw: {"question": _text(draw), "answer": _text(draw)}),
    "dialogue": ("sft", lambda draw: {"text": _dialogue(draw)}),
    "hh pairs": ("pairs", _pair),
    "TRL pairs": (
        "pairs",
        lambda draw: {"prompt": (m := _messages(draw))[:1], "chosen": m[1:], "rejected": _messages(draw)[1:]},
    ),
    "prompts": ("prompts", lambda draw: {"prompt": _text(draw), "answer": "42"}),
    "texts": ("texts", lambda draw: {"text": _text(draw), "label": draw.choice(["bad", "good"])}),
}
FORMATS = (
    "jsonl",
    "json",
    "csv",
    "tsv",
    "parquet",
    "arrow",
    "txt",
    "jsonl.gz",
    "jsonl.zst",
    "jsonl.zip",
)


def rows_of(shape: str, count: int, seed: int = 0) -> list[Row]:
    """Random rows, in a tenth of which one cell holds anything."""
    draw = random.Random(seed)
    rows = [SHAPES[shape][1](draw) for _ in range(count)]
    for row in rows[::10]:
        row[draw.choice(sorted(row))] = draw.choice(ANYTHING)
    return rows


def write(path: Path, rows: list[Row]) -> Path:
    """The rows as a file of the format that its name says."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix in (".csv", ".tsv"):
        path.write_bytes(_delimited(rows, "," if path.suffix == ".csv" else "\t"))
    elif path.suffix in (".parquet", ".arrow"):
        _write_table(path, [{name: _plain(value) for name, value in row.items()} for row in rows])
    elif path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("rows.jsonl", lines)
    else:
        packed = {".gz": gzip.compress, ".zst": _zstd, ".json": lambda _: json.dumps(rows).encode(), ".txt": _conll}
        path.write_bytes(packed.get(path.suffix, bytes)(lines))
    return path


def _plain(value: Any) -> str | None:
    """What a column of text can hold."""
    if value is None or isinstance(value, str):
        return None if value is None else value.encode("utf-8", "replace").decode()
    return json.dumps(value)


def _delimited(rows: list[Row], separator: str) -> bytes:
    sink = io.StringIO(newline="")
    writer = csv.writer(sink, delimiter=separator)
    writer.writerow(rows[0])
    writer.writerows([_plain(value) for value in row.values()] for row in rows)
    return sink.getvalue().encode()


def _write_table(path: Path, rows: list[Row]) -> None:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".parquet":
        pa.parquet.write_table(table, path)
    else:
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)


def _zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def _conll(lines: bytes) -> bytes:
    """Each row's words as a sentence of tagged lines, some of them without a tag."""
    draw = random.Random(0)
    sentences = [json.loads(line) for line in lines.splitlines()]
    words = [str(row.get("prompt")).encode("utf-8", "replace").decode().split() or ["-"] for row in sentences]
    return "".join("".join(f"{word}{draw.choice(TAGS)}\n" for word in sentence) + "\n" for sentence in words).encode()


TAGS = ["\tO"] * 500 + ["\tB-PER"] * 50 + [""]


def measure(name: str, count: int, folder: Path) -> dict[str, float]:
    """Figures of a reader: `name` is a format or a shape."""
    from triptych.data.sources import load_rows
    from triptych.recipe.data import Source

    shape = name if name in SHAPES else "prompt and response"
    suffix = name if name in FORMATS else "jsonl"
    path = write(folder / f"rows.{suffix}", rows_of(shape, count))
    source = Source(path=str(path), max_bad_rows=sys.maxsize)
    kind: RowKind = "tags" if suffix == "txt" else SHAPES[shape][0]
    start = time.process_time()
    rows = load_rows(source, kind)
    seconds = time.process_time() - start
    return {f"{name}: rows/s": count / seconds, f"{name}: bad rows": len(rows.bad)}


def measure_all(count: int) -> None:
    """Hand over the figures of every reader."""
    with tempfile.TemporaryDirectory() as folder:
        for name in FORMATS:
            measure(name, 10, Path(folder))  # what is imported at the first call
        figures = [measure(name, count, Path(folder)) for name in (*FORMATS, *SHAPES)]
    emit({name: value for found in figures for name, value in found.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("build/bench/readers.json"))
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        return measure_all(options.rows)
    arm = Arm("triptych", [sys.executable, __file__, "--ours", "--rows", str(options.rows)])
    run_benchmark("Readers of rows", "rows a second of CPU", [arm], [], options.rounds, options.out)
    return None


if __name__ == "__main__":
    main()
