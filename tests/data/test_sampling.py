"""Chosen rows: which, how many, in which order, and the same for the same seed."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from triptych.data.rows import PromptRow
from triptych.data.sampling import sampled, shuffled, weighted
from triptych.data.sources import PARSERS, load_rows, quick_count, survey
from triptych.errors import UserError
from triptych.recipe.data import Source


def _file(path: Path, count: int, prefix: str = "") -> str:
    path.write_text("".join(json.dumps({"prompt": f"{prefix}{n}"}) + "\n" for n in range(count)))
    return str(path)


def _read(**fields: Any) -> list[str]:
    return [row.messages[0].content for row in load_rows(Source(**fields), "prompts").items]


def _rows(count: int) -> list[list[PromptRow]]:
    return [[PromptRow((), {"n": number})] for number in range(count)]


def _numbers(rows: Any) -> list[int]:
    return [row[0].fields["n"] for row in rows]


def test_a_sample_is_of_the_whole_file_in_its_order(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.jsonl", 1000)
    drawn = [int(text) for text in _read(path=path, sample=100)]
    assert drawn == sorted(set(drawn))
    assert len(drawn) == 100
    assert 30 < sum(number < 500 for number in drawn) < 70
    assert drawn == [int(text) for text in _read(path=path, sample=100, seed=0)]
    assert drawn != [int(text) for text in _read(path=path, sample=100, seed=1)]
    assert len(_read(path=path, sample=5000)) == 1000


def test_every_row_is_drawn_as_often_as_any_other() -> None:
    drawn = [number for seed in range(4000) for number in _numbers(sampled(iter(_rows(10)), 3, seed))]
    assert all(1200 - 5 * 29 < drawn.count(number) < 1200 + 5 * 29 for number in range(10)), "five deviations"


def test_a_shuffled_file_has_another_order_and_the_same_rows(tmp_path: Path) -> None:
    path = _file(tmp_path / "a.jsonl", 100)
    mixed = _read(path=path, shuffle=True)
    assert sorted(mixed, key=int) == _read(path=path) != mixed
    assert _read(path=path, shuffle=True, limit=7) == mixed[:7]
    assert _read(path=path, shuffle=True, seed=1) != mixed


@given(st.integers(0, 3000), st.integers(1, 400), st.integers(0, 3))
def test_a_weight_is_a_number_of_copies(rows: int, hundredths: int, seed: int) -> None:
    weight = hundredths / 100
    taken = _numbers(weighted(iter(_rows(rows)), weight, seed))
    assert len(taken) == rows * hundredths // 100
    assert taken == sorted(taken)
    assert all(abs(taken.count(number) - weight) < 1 for number in {0, rows // 2, rows - 1} if 0 <= number < rows)


def test_a_mixture_takes_each_table_by_its_weight(tmp_path: Path) -> None:
    parts: list[dict[str, Any]] = [
        {"path": _file(tmp_path / "a.jsonl", 10, "a"), "weight": 2},
        {"path": _file(tmp_path / "b.jsonl", 1000, "b"), "weight": 0.25, "limit": 400},
        {"path": _file(tmp_path / "c.jsonl", 50, "c"), "sample": 5},
    ]
    texts = _read(mix=parts)
    assert [sum(text[0] == name for text in texts) for name in "abc"] == [20, 100, 5]
    assert texts[:4] == ["a0", "a0", "a1", "a1"]
    assert max(int(text[1:]) for text in texts if text[0] == "b") < 400
    assert quick_count(Source(mix=parts)) == 125
    ten = _read(mix=parts, sample=50)
    assert {text[0] for text in ten} >= {"a", "b"}
    assert len(ten) == 50
    assert _read(mix=parts, shuffle=True) != texts


def test_bad_rows_of_a_mixture_are_counted_together_and_named(tmp_path: Path) -> None:
    good, bad = _file(tmp_path / "a.jsonl", 3), tmp_path / "b.jsonl"
    bad.write_text('{"prompt": "x"}\n{"topic": 1}\n')
    source = Source(mix=[{"path": good}, {"path": str(bad)}], max_bad_rows=1)
    assert len(load_rows(source, "prompts").items) == 4
    with pytest.raises(UserError, match=r"a\.jsonl \+ .*b\.jsonl: 1 of 5 rows .*\n  line 2: .*b\.jsonl: no 'prompt'"):
        load_rows(source.model_copy(update={"max_bad_rows": 0}), "prompts")
    assert survey(source, "prompts", PARSERS["prompts"]).digest == load_rows(source, "prompts").digest


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "exactly one of `path` and `stage`, or `mix`"),
        ({"path": "a.jsonl", "mix": [{"path": "b.jsonl"}]}, "exactly one of `path` and `stage`, or `mix`"),
        ({"path": "a.jsonl", "sample": 3, "limit": 3}, "one of `sample` and `limit`"),
        ({"path": "a.jsonl", "revision": "main"}, "`revision` is of hf:// data sets"),
        ({"mix": [{"path": "b.jsonl"}], "columns": {"prompt": "q"}}, "`columns` is set on each of its tables"),
        ({"mix": [{"path": "b.jsonl", "weight": 0}]}, "greater than 0"),
        ({"mix": [{}]}, "exactly one of `path` and `stage`"),
    ],
)
def test_choices_that_contradict_each_other_are_refused(fields: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Source(**fields)


def test_the_named_columns_are_read_and_no_others(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "old"}, {"role": "assistant", "content": "old"}]
    row = {"messages": messages, "ask": "new", "say": "newer", "answers": ["x"], "good": "better", "bad": "worse"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    chats = load_rows(Source(path=f"{tmp_path}/a.jsonl", columns={"prompt": "ask", "response": "say"}), "sft").items
    assert [message.content for message in chats[0].messages] == ["new", "newer"]
    columns = {"prompt": "ask", "chosen": "good", "rejected": "bad"}
    pairs = load_rows(Source(path=f"{tmp_path}/a.jsonl", columns=columns), "pairs").items
    assert (pairs[0].chosen, pairs[0].rejected) == ("better", "worse")


def test_shuffled_holds_each_row_once() -> None:
    assert sorted(_numbers(shuffled(iter(_rows(50)), 3))) == list(range(50))
