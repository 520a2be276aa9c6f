"""Rows out of files, in whatever format, with every complaint at its line."""

import csv
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet
import pytest

from triptych.data.rows import Message, PairRow
from triptych.data.sources import PARSERS, Survey, check_first_rows, load_rows, survey
from triptych.errors import UserError
from triptych.recipe.data import Source

PAIRS: list[dict[str, Any]] = [
    {"prompt": "Say it.", "chosen": f"Güt, «{n}»", "rejected": 'bad,\n"quoted"', "margin": n + 0.5} for n in range(7)
]


def _jsonl(path: Path, rows: list[Any]) -> Source:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Source(path=str(path))


def test_formats_give_the_same_rows(tmp_path: Path) -> None:
    sources = [
        _jsonl(tmp_path / "a.jsonl", PAIRS),
        Source(path=f"{tmp_path}/a.csv"),
        Source(path=f"{tmp_path}/a.parquet"),
    ]
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, ["prompt", "chosen", "rejected", "margin"])
        writer.writeheader()
        writer.writerows(PAIRS)
    pa.parquet.write_table(pa.Table.from_pylist(PAIRS), tmp_path / "a.parquet")
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/triptych-test/a.jsonl", (tmp_path / "a.jsonl").read_bytes())
    sources.append(Source(path="memory://triptych-test/a.jsonl"))

    loaded = [load_rows(source, "pairs") for source in sources]
    assert loaded[0].items[3] == PairRow((Message("user", "Say it."),), "Güt, «3»", 'bad,\n"quoted"', 3.5)
    assert all(rows.items == loaded[0].items and rows.digest == loaded[0].digest for rows in loaded)


def test_chats_in_parquet_and_in_a_csv_cell(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    source = _jsonl(tmp_path / "a.jsonl", [{"messages": messages}])
    pa.parquet.write_table(pa.Table.from_pylist([{"messages": messages}]), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["messages"], [json.dumps(messages)]])
    digests = {
        load_rows(Source(path=path), "sft").digest
        for path in (source.path, f"{tmp_path}/a.parquet", f"{tmp_path}/a.csv")
    }
    assert len(digests) == 1


def test_the_digest_is_of_the_used_rows_in_order(tmp_path: Path) -> None:
    whole = load_rows(_jsonl(tmp_path / "a.jsonl", PAIRS), "pairs")
    cut = load_rows(Source(path=f"{tmp_path}/a.jsonl", limit=5), "pairs")
    assert len(cut.items) == 5
    assert cut.digest == load_rows(_jsonl(tmp_path / "b.jsonl", PAIRS[:5]), "pairs").digest != whole.digest
    assert load_rows(_jsonl(tmp_path / "c.jsonl", PAIRS[::-1]), "pairs").digest != whole.digest


def test_other_columns_of_prompts_are_no_part_of_the_digest(tmp_path: Path) -> None:
    """A run that was begun by a version that dropped them goes on."""
    system, user = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Güt?"}
    rows: list[dict[str, Any]] = [{"prompt": "7 * 6?", "answer": "42"}, {"messages": [system, user], "tags": ["a"]}]
    found = load_rows(_jsonl(tmp_path / "a.jsonl", rows), "prompts")
    assert [row.fields for row in found.items] == [{"answer": "42"}, {"tags": ["a"]}]
    assert found.digest == "4c954c7343a2be2ccf3dc401b52f29a6eb5dce42828aae1585b5e74e2f224a2b"
    whole = survey(Source(path=f"{tmp_path}/a.jsonl"), "prompts", PARSERS["prompts"])
    assert (whole.digest, whole.size) == (found.digest, 155)
    changed = load_rows(_jsonl(tmp_path / "b.jsonl", [rows[0] | {"prompt": "6 * 7?"}, rows[1]]), "prompts")
    assert changed.digest != found.digest


def test_the_limit_never_cuts_a_ranking(tmp_path: Path) -> None:
    ranking = {"prompt": "Hi", "answers": ["a", "b", "c"], "scores": [3, 2, 1]}
    source = _jsonl(tmp_path / "a.jsonl", [ranking, PAIRS[0], ranking])
    rows = load_rows(source.model_copy(update={"limit": 2}), "pairs")
    assert [(row.chosen, row.rejected) for row in rows.items[:3]] == [("a", "b"), ("a", "c"), ("b", "c")]
    assert len(rows.items) == 4


def test_pairs_without_a_margin_are_counted_where_one_is_needed(tmp_path: Path) -> None:
    bare = {key: value for key, value in PAIRS[0].items() if key != "margin"}
    source = _jsonl(tmp_path / "a.jsonl", [PAIRS[0], bare, PAIRS[1]])
    assert len(load_rows(source, "pairs").items) == 3
    with pytest.raises(UserError, match=r"1 of 3 rows are malformed as pairs_with_margin .*\n  line 2: no 'margin'"):
        load_rows(source, "pairs_with_margin")
    rows = load_rows(source.model_copy(update={"max_bad_rows": 1}), "pairs_with_margin")
    assert [row.margin for row in rows.items] == [0.5, 1.5]


def test_columns_are_renamed(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", [{"question": "q", "answer": "a"}, {"question": "q"}])
    source = source.model_copy(update={"columns": {"prompt": "question", "response": "answer"}, "max_bad_rows": 1})
    rows = load_rows(source, "sft")
    assert rows.items[0].messages == (Message("user", "q"), Message("assistant", "a"))
    assert rows.bad[0].line == 2
    assert rows.bad[0].reason == "no 'answer', which `columns` names for 'response'; the row has: question"


def test_bad_rows_are_counted_shown_and_limited(tmp_path: Path) -> None:
    good = {"prompt": "Hi"}
    lines = [good, "", "{", "[1]", '{"prompt": 3}', "nul", good, "{}", '"text"', "[" * 100_000]
    source = _jsonl(tmp_path / "a.jsonl", lines)
    with pytest.raises(UserError) as error:
        load_rows(source, "prompts")
    message = str(error.value)
    assert "7 of 9 rows are malformed as prompts (max_bad_rows allows 0)" in message
    assert "line 3: not JSON" in message
    assert "line 4: a JSON list in place of an object" in message
    assert "line 5: prompt: int in place of text or a list of messages" in message
    assert "line 8: no 'prompt'" in message
    assert "line 9" not in message
    assert "and 2 more" in message

    rows = load_rows(source.model_copy(update={"max_bad_rows": 7}), "prompts")
    assert len(rows.items) == 2
    assert [bad.line for bad in rows.bad] == [3, 4, 5, 6, 8, 9, 10]


def test_bytes_that_are_no_utf8_are_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "one"}\r\n{"prompt": "caf\xe9"}\n{"prompt": "two"}')
    with pytest.raises(UserError, match="line 2: not UTF-8 at byte 15"):
        load_rows(Source(path=str(path)), "prompts")
    assert len(load_rows(Source(path=str(path), max_bad_rows=1), "prompts").items) == 2


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_utf16_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_text('{"prompt": "one"}\n', encoding="utf-16")
    with pytest.raises(UserError, match="UTF-16; save it as UTF-8"):
        load_rows(Source(path=str(path)), "prompts")


def test_csv_trouble_is_at_its_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'prompt,other\none,1\ntwo\nthree,3,4\n"four\nlines",4\n')
    rows = load_rows(Source(path=str(path), max_bad_rows=2), "prompts")
    assert [(bad.line, bad.reason) for bad in rows.bad] == [
        (3, "not 2 fields, as in the header"),
        (4, "not 2 fields, as in the header"),
    ]
    assert rows.items[1].messages[0].content == "four\nlines"
    path.write_bytes(b"prompt\ncaf\xe9\n")
    with pytest.raises(UserError, match="line 2: not UTF-8 at byte 3"):
        load_rows(Source(path=str(path)), "prompts")
    path.write_bytes(b'prompt\n"never closed\n')
    with pytest.raises(UserError, match="line 2 is not CSV"):
        load_rows(Source(path=str(path)), "prompts")


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_an_empty_set_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("")
    with pytest.raises(UserError, match="no usable row"):
        load_rows(Source(path=str(tmp_path / name)), "sft")


def test_only_bad_rows_are_refused_whatever_the_limit(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", [{"x": 1}]).model_copy(update={"max_bad_rows": 9})
    with pytest.raises(UserError, match="all 1 are malformed"):
        load_rows(source, "sft")


def test_a_missing_file_suggests_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "sft.train.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"no such file \(did you mean sft\.train\.jsonl\?\)"):
        load_rows(Source(path=f"{tmp_path}/stf.train.jsonl"), "sft")
    with pytest.raises(UserError, match=r"no such file$"):
        load_rows(Source(path=f"{tmp_path}/nowhere/a.jsonl"), "sft")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("a.docx", r"\.docx file suffix; allowed: \.jsonl, \.json, \.csv, .*, hf://owner/name"),
        ("data", "no file suffix"),
        ("nosuch://a/b.jsonl", "cannot be read.*nosuch"),
        ("hf://name", "is written hf://owner/name"),
        ("hf://owner/no-such-data", "cannot be read"),
    ],
)
def test_sources_that_cannot_be(path: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        load_rows(Source(path=path), "sft")


def test_folders_and_broken_parquet(tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(UserError, match="cannot be read"):
        load_rows(Source(path=f"{tmp_path}/folder.jsonl"), "sft")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(UserError, match="not a readable Parquet file"):
        load_rows(Source(path=f"{tmp_path}/a.parquet"), "sft")


def test_first_rows_tell_what_a_run_would_refuse(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", [{"prompt": "Hi"}, {"topic": 1}, *[{"prompt": "Hi"}] * 98, {"topic": 1}])
    with pytest.raises(UserError, match=r"1 of 100 rows .*\n  line 2: no 'prompt'"):
        check_first_rows(source, "prompts", most=100)
    with pytest.raises(UserError, match="2 of 101 rows"):
        check_first_rows(source, "prompts", most=1000)
    source = _jsonl(tmp_path / "b.jsonl", [{"prompt": "Hi"}, {"topic": 1}])
    check_first_rows(source.model_copy(update={"max_bad_rows": 1}), "prompts", most=1000)
    check_first_rows(source.model_copy(update={"limit": 1}), "prompts", most=1000)
    check_first_rows(Source(path=f"{tmp_path}/none.jsonl"), "prompts", most=1000)
    with pytest.raises(UserError, match=r"none\.jsonl: no such file"):
        check_first_rows(Source(path=f"{tmp_path}/none.jsonl"), "prompts", most=1000, here=True)
    (tmp_path / "a.docx").write_text("")
    with pytest.raises(UserError, match=r"\.docx file suffix"):
        check_first_rows(Source(path=f"{tmp_path}/a.docx"), "prompts", most=1000)


def test_a_survey_reads_what_load_rows_reads(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "a.jsonl", ["no JSON", *PAIRS]).model_copy(update={"limit": 5, "max_bad_rows": 1})
    rows = load_rows(source, "pairs")
    found = survey(source, "pairs", PARSERS["pairs"])
    assert found == Survey(rows=5, size=found.size, digest=rows.digest)
    assert found.size > sum(len(row.chosen) + len(row.rejected) for row in rows.items)
    with pytest.raises(UserError, match=r"1 of 6 rows are malformed as pairs .*\n  line 1: not JSON"):
        survey(source.model_copy(update={"max_bad_rows": 0}), "pairs", PARSERS["pairs"])
