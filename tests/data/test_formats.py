"""Formats of files: the same rows out of each, and every complaint at its place."""

import bz2
import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from triptych.data.rows import TaggedRow
from triptych.data.sources import load_rows, quick_count
from triptych.errors import UserError
from triptych.recipe.data import Source

ROWS = [{"prompt": f"Frage {n}: «ü»?", "response": f'Say "{n}", please.'} for n in range(5)]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def _zstd(data: bytes) -> bytes:
    return bytes(pa.Codec("zstd").compress(data, asbytes=True))


def _zip(data: bytes, name: str = "rows.jsonl") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._rows", b"x")
        archive.writestr(name, data)
    return file.getvalue()


def _arrow(*, stream: bool) -> bytes:
    table, sink = pa.Table.from_pylist(ROWS), pa.BufferOutputStream()
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    return bytes(sink.getvalue().to_pybytes())


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


def _tsv() -> bytes:
    return ("prompt\tresponse\r\n" + "".join(f"{row['prompt']}\t{row['response']}\r\n" for row in ROWS)).encode()


FILES: dict[str, bytes] = {
    "a.json": json.dumps(ROWS, indent=1).encode(),
    "lines.json": b"\n" + LINES,
    "spaced.json": LINES.replace(b"\n", b"\r\n \r\n"),
    "data.json": json.dumps({"version": "1", "data": ROWS}).encode(),
    "indented.json": json.dumps({"data": ROWS}, indent=1).encode(),
    "a.tsv": _tsv(),
    "a.arrow": _arrow(stream=False),
    "stream.arrow": _arrow(stream=True),
    "a.jsonl.gz": gzip.compress(LINES[:50]) + gzip.compress(LINES[50:]),
    "A.JSONL.GZ": gzip.compress(LINES),
    "a.jsonl.zst": _zstd(LINES),
    "a.json.zst": _zstd(json.dumps(ROWS).encode()),
    "a.zip": _zip(LINES),
    "a.tsv.zip": _zip(_tsv(), "folder/a.tsv"),
    "a.parquet.gz": gzip.compress(_parquet(ROWS)),
}


@pytest.mark.parametrize("name", FILES)
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / "plain.jsonl").write_bytes(LINES)
    (tmp_path / name).write_bytes(FILES[name])
    found = load_rows(Source(path=f"{tmp_path}/{name}"), "sft")
    assert len(found.items) == len(ROWS)
    assert found.digest == load_rows(Source(path=f"{tmp_path}/plain.jsonl"), "sft").digest


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_folder_of_tables_is_one_table(tmp_path: Path, suffix: str) -> None:
    folder = tmp_path / "rows.parquet"  # as Spark calls them
    folder.mkdir()
    (folder / "_SUCCESS").write_bytes(b"")
    for number in range(3):
        rows = pa.Table.from_pylist([{"prompt": f"{number}-{n}"} for n in range(2)])
        path = folder / f"part-{number}.{suffix}"
        if suffix == "parquet":
            pa.parquet.write_table(rows, path)
        else:
            with pa.ipc.new_file(path, rows.schema) as writer:
                writer.write_table(rows)
    source = Source(path=str(folder))
    texts = [row.messages[0].content for row in load_rows(source, "prompts").items]
    assert texts == ["0-0", "0-1", "1-0", "1-1", "2-0", "2-1"]
    assert quick_count(source) == (6 if suffix == "parquet" else None)


def test_a_folder_of_splits_gives_the_one_that_is_asked_for(tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / f"{split}-00000-of-00001.parquet").write_bytes(_parquet([{"prompt": split}]))
    for split in ("train", "test"):
        rows = load_rows(Source(path=str(tmp_path), split=split), "prompts")
        assert [row.messages[0].content for row in rows.items] == [split]
    with pytest.raises(UserError, match=r"no file of split dev; files are there of test, train"):
        load_rows(Source(path=str(tmp_path), split="dev"), "prompts")
    (tmp_path / "more.parquet").write_bytes(_parquet([{"prompt": "?"}]))
    with pytest.raises(UserError, match=r"no telling the split of more\.parquet"):
        load_rows(Source(path=str(tmp_path)), "prompts")


def test_a_word_of_a_file_s_name_tells_its_split(tmp_path: Path) -> None:
    names = {
        "my_train-00000-of-00001": "train",
        "my_testing": "test",
        "data.dev.v2": "validation",
        "latest-train": "train",
    }
    for name in names:
        (tmp_path / f"{name}.parquet").write_bytes(_parquet([{"prompt": name}]))
    asked = {"train": "train", "validation": "validation", "val": "validation", "eval": "test"}
    for split, kept in asked.items():
        rows = load_rows(Source(path=str(tmp_path), split=split), "prompts").items
        assert {row.messages[0].content for row in rows} == {name for name, of in names.items() if of == kept}


def test_a_split_of_what_has_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "part-0.parquet").write_bytes(_parquet([{"prompt": "?"}]))
    with pytest.raises(UserError, match=r"part-0\.parquet: one file, which has no split 'test'"):
        load_rows(Source(path=f"{tmp_path}/part-0.parquet", split="test"), "prompts")
    with pytest.raises(UserError, match=r"no telling the split of part-0\.parquet; files are there of none"):
        load_rows(Source(path=str(tmp_path), split="test"), "prompts")


def test_folders_of_tables_in_a_folder_are_refused(tmp_path: Path) -> None:
    for name in ("data", ".cache", "docs"):
        (tmp_path / name).mkdir()
    (tmp_path / ".cache" / "a.parquet").write_bytes(b"")
    (tmp_path / "a.parquet").write_bytes(_parquet([{"prompt": "a"}]))
    assert len(load_rows(Source(path=str(tmp_path)), "prompts").items) == 1
    (tmp_path / "data" / "b.parquet").write_bytes(_parquet([{"prompt": "b"}]))
    with pytest.raises(UserError, match=r"the files of .*/data would not be read; name one such folder"):
        load_rows(Source(path=str(tmp_path)), "prompts")


def test_caches_beside_a_saved_data_set_are_no_rows_of_it(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(str(tmp_path))
    saved = next(tmp_path.glob("data-*.arrow"))
    (tmp_path / "cache-0123.arrow").write_bytes(saved.read_bytes())
    assert len(load_rows(Source(path=str(tmp_path)), "sft").items) == len(ROWS)


def test_a_last_line_without_an_end_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(LINES.rstrip(b"\n"))
    assert quick_count(Source(path=f"{tmp_path}/a.jsonl")) == len(ROWS)


def test_an_object_of_one_row_is_that_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(ROWS[0] | {"data": ["x"]}, indent=1))
    assert len(load_rows(Source(path=f"{tmp_path}/a.json"), "sft").items) == 1


CONLL = """-DOCSTART- -X- O O

EU NNP B-ORG
rejects VBZ O

Peter NNP B-PER
"""


def test_conll_lines_are_sentences(tmp_path: Path) -> None:
    (tmp_path / "a.conll").write_text(CONLL)
    source = Source(path=f"{tmp_path}/a.conll")
    assert load_rows(source, "tags").items == [
        TaggedRow(("EU", "rejects"), ("B-ORG", "O")),
        TaggedRow(("Peter",), ("B-PER",)),
    ]
    parts = source.model_copy(update={"columns": {"tags": "column_2"}})
    assert load_rows(parts, "tags").items[0].tags == ("NNP", "VBZ")


def test_conll_trouble_is_at_its_sentence(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("中\tO\n国\tB-LOC\n\nword\n\na\tO\nb\tx\tO\n\n".encode() + b"caf\xe9\tO\n\n\n\n\xe3\x80\x80\tO\n")
    rows = load_rows(Source(path=str(path), max_bad_rows=9), "tags")
    assert rows.items == [TaggedRow(("中", "国"), ("O", "B-LOC"))]
    assert [(bad.line, bad.reason) for bad in rows.bad] == [
        (4, "line 4 has not 2 columns, as the first of the file; the last is the tag"),
        (6, "line 7 has not 2 columns, as the first of the file; the last is the tag"),
        (9, "not UTF-8 at byte 3 of line 9"),
        (13, "tokens[0]: empty"),
    ]


def test_quotes_in_tsv_are_text_but_where_a_writer_of_csv_put_them(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(b'text\tlabel\n" the best of all\t1\n"so ""good"""\t1\n"quoted"\t0\nsay "no" "\t0\n""\t0\n')
    rows = load_rows(Source(path=str(path), max_bad_rows=1), "texts")
    assert [row.text for row in rows.items] == ['" the best of all', 'so "good"', "quoted", 'say "no" "']
    assert (rows.bad[0].line, rows.bad[0].reason) == (6, "text: empty")


def test_cells_of_megabytes(tmp_path: Path) -> None:
    long = "word " * 400_000
    (tmp_path / "a.csv").write_text(f'prompt,response\n"{long}",x\n')
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": long, "response": [long]}))
    assert load_rows(Source(path=f"{tmp_path}/a.csv"), "sft").items[0].messages[0].content == long
    with pytest.raises(UserError) as error:
        load_rows(Source(path=f"{tmp_path}/a.jsonl"), "sft")
    assert len(str(error.value)) < 1000


def test_text_that_parquet_holds_and_utf8_does_not_is_a_bad_row(tmp_path: Path) -> None:
    raw = pa.array([b"one", b"caf\xe9", b"three"], pa.binary())
    text = pa.StringArray.from_buffers(3, raw.buffers()[1], raw.buffers()[2])
    pa.parquet.write_table(pa.table({"prompt": text}), tmp_path / "a.parquet")
    rows = load_rows(Source(path=f"{tmp_path}/a.parquet", max_bad_rows=1), "prompts")
    assert [row.messages[0].content for row in rows.items] == ["one", "three"]
    assert rows.bad[0].line == 2
    assert rows.bad[0].reason.startswith("prompt: cannot be read: 'utf-8' codec")
    with pytest.raises(UserError, match="\n  row 2: prompt"):
        load_rows(Source(path=f"{tmp_path}/a.parquet"), "prompts")


def test_reasons_can_be_printed_anywhere(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"\\ud800\\u001b[31m\\n": 1}\n')
    with pytest.raises(UserError) as error:
        load_rows(Source(path=f"{tmp_path}/a.jsonl"), "sft")
    assert r"the row has: \ud800\x1b[31m\n" in str(error.value)


def _two_columns() -> bytes:
    sink = pa.BufferOutputStream()
    pa.parquet.write_table(pa.table([["a"], ["b"]], names=["prompt", "prompt"]), sink)
    return bytes(sink.getvalue().to_pybytes())


def test_a_name_with_two_values_is_a_malformed_row(tmp_path: Path) -> None:
    twice = b'{"prompt": "a", "response": "b", "response": "c"}'
    for name, content in {
        "a.jsonl": LINES + twice + b"\n",
        "a.json": b"[" + b",".join([*LINES.splitlines(), twice]) + b"]",
        "lines.json": LINES + twice,
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=r"1 of 6 rows .*\n  (line|row) 6: two values of 'response'"):
            load_rows(Source(path=f"{tmp_path}/{name}"), "sft")
        assert len(load_rows(Source(path=f"{tmp_path}/{name}", max_bad_rows=1), "sft").items) == len(ROWS)


BROKEN: dict[str, tuple[Callable[[], bytes] | bytes, str]] = {
    "a.csv": (b"prompt,prompt\na,b\n", "two columns are called 'prompt'"),
    "semicolon.csv": (b"prompt;response\na;b\n", "',' separates its columns, and the header has ';' instead"),
    "comma.tsv": (b"prompt,response\na,b\n", r"separates its columns, and the header has ',' instead"),
    "a.parquet": (_two_columns, "two columns are called 'prompt'"),
    "object.json": (b'{\n "data": [\n}', "neither a JSON array of rows, nor one JSON object a line, nor one object"),
    "twice.json": (b'{"prompt": "a",\n "prompt": "b"}', r"twice\.json: two values of 'prompt'"),
    "twice.csv": (b'messages\n"[{""role"": ""user"", ""role"": ""tool""}]"', "messages: two values of 'role'"),
    "cut.json": (b'[{"prompt": "a"}, {"prompt"', "row 2 is not JSON, and nothing behind it"),
    "comma.json": (b'[{"prompt": "a"} {"prompt": "b"}]', "no comma behind row 1"),
    "more.json": (b'[{"prompt": "a"}] []', "more behind the array's end"),
    "latin.json": (b'[\n{"prompt": "caf\xe9"}]', "line 2 is not UTF-8"),
    "deep.json": (b"[" * 100_000, "row 1 is nested too deeply"),
    "cut.jsonl.gz": (lambda: gzip.compress(LINES)[:-9], "cannot be read"),
    "no.jsonl.gz": (LINES, "cannot be read"),
    "cut.jsonl.zst": (lambda: _zstd(LINES)[:-9], "cannot be read"),
    "no.jsonl.zip": (LINES, "cannot be read"),
    "other.zip": (lambda: _zip(LINES, "rows.docx"), r"holds rows\.docx"),
    "a.arrow": (b"no arrow at all, but long enough to be looked at", "not a readable Arrow file"),
    "a.jsonl.bz2": (lambda: bz2.compress(LINES), r"\.bz2 file suffix; allowed: .*\.gz, \.zst, \.zip"),
    "rows.gz": (lambda: gzip.compress(LINES), "no file suffix"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_refused(name: str, tmp_path: Path) -> None:
    content, reason = BROKEN[name]
    (tmp_path / name).write_bytes(content() if callable(content) else content)
    with pytest.raises(UserError, match=reason):
        load_rows(Source(path=f"{tmp_path}/{name}"), "sft")


def test_archives_hold_one_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.jsonl", LINES)
        archive.writestr("b.jsonl", LINES)
    with pytest.raises(UserError, match=r"2 files \(a\.jsonl, b\.jsonl\); allowed: one"):
        load_rows(Source(path=f"{tmp_path}/a.zip"), "sft")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=r"a folder without a \.parquet or \.arrow file"):
        load_rows(Source(path=f"{tmp_path}/folder"), "sft")
