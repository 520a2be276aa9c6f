"""Rated answers: chats of the good ones, pairs of those to one prompt, the better first."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from triptych.data.rows import Message, PairRow, parse_pairs, parse_pairs_with_margin, parse_preferences, parse_sft
from triptych.data.sources import PARSERS, found_shapes, load_rows, survey
from triptych.errors import UserError
from triptych.recipe.data import Source

ASKED = (Message("user", "Hi"),)


def _source(path: Path, rows: list[dict[str, Any]], **fields: Any) -> Source:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path), **fields)


def _kto(*rated: tuple[str, str, Any]) -> list[dict[str, Any]]:
    return [{"prompt": prompt, "completion": said, "label": label} for prompt, said, label in rated]


def test_answers_that_are_rated_bad_are_left_out_of_chats(tmp_path: Path) -> None:
    rows = [*_kto(("Hi", "Hello", True), ("Hi", "No", False), ("Hi", "Go", "false"), ("Ho", "Hey", 1))]
    rows += [{"prompt": "a", "response": "b", "label": False}, {"prompt": "a", "response": "c", "label": 0}]
    rows += [{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "d"}], "label": False}]
    source = _source(tmp_path / "a.jsonl", rows)
    assert [row.messages[-1].content for row in load_rows(source, "sft").items] == ["Hello", "Hey", "c"]
    assert survey(source, "sft", PARSERS["sft"]).rows == 3
    assert dict(found_shapes(source, "sft").shapes)["left out", "label: false"] == 4
    with pytest.raises(UserError, match="no usable row"):
        load_rows(_source(tmp_path / "b.jsonl", rows[1:3]), "sft")


def test_pairs_are_of_answers_to_one_prompt_whose_ratings_differ(tmp_path: Path) -> None:
    rows = _kto(
        ("Hi", "Hello", True), ("Ho", "x", True), ("Hi", "No", False), ("Hi", "Hey", True), ("Hi", "Hello", True)
    )
    pairs = load_rows(_source(tmp_path / "a.jsonl", rows), "pairs").items
    assert pairs == [PairRow(ASKED, "Hello", "No", None), PairRow(ASKED, "Hey", "No", None)]
    scores = [
        {"question": "Hi", "answer": said, "rating": rating} for said, rating in (("a", 1), ("b", 4.5), ("c", "1"))
    ]
    pairs = load_rows(_source(tmp_path / "b.jsonl", scores), "pairs_with_margin").items
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in pairs] == [("b", "a", 3.5), ("b", "c", 3.5)]


def test_a_named_column_rates_the_answers(tmp_path: Path) -> None:
    rows = [{"prompt": "Hi", "response": said, "helpfulness": n, "rating": 9 - n} for said, n in (("a", 1), ("b", 4))]
    source = _source(tmp_path / "a.jsonl", rows, columns={"score": "helpfulness"})
    assert load_rows(source, "pairs").items == [PairRow(ASKED, "b", "a", 3.0)]


def test_a_limit_takes_prompts_of_rated_answers(tmp_path: Path) -> None:
    rows = _kto(*((prompt, said, said == "good") for said in ("good", "bad") for prompt in ("a", "b", "c")))
    pairs = load_rows(_source(tmp_path / "a.jsonl", rows, limit=2), "pairs").items
    assert [pair.prompt[0].content for pair in pairs] == ["a", "b"]


def test_ratings_that_prefer_nothing_are_refused(tmp_path: Path) -> None:
    rows = _kto(("Hi", "Hello", True), ("Hi", "Hey", True), ("Ho", "No", False))
    with pytest.raises(UserError, match="2 prompts with rated answers, and none has two whose ratings differ"):
        load_rows(_source(tmp_path / "a.jsonl", rows), "pairs")
    broken = [*rows, {"prompt": "Ho", "response": "Ha", "score": math.nan}]
    with pytest.raises(UserError, match="1 rows are malformed, the first is 4: score: nan is not a finite number"):
        load_rows(_source(tmp_path / "c.jsonl", broken), "pairs")
    many = _kto(*(("Hi", str(n), n > 0) for n in range(300)))
    with pytest.raises(UserError, match="300 answers to 'Hi' make too many pairs; allowed: 256"):
        load_rows(_source(tmp_path / "b.jsonl", many), "pairs")
    with pytest.raises(ValueError, match="label: says good or bad and not by how much"):
        parse_pairs_with_margin(rows[0])
    with pytest.raises(ValueError, match="score: 'much' is not a number"):
        parse_preferences({"prompt": "Hi", "response": "a", "score": "much"})


@pytest.mark.parametrize(
    ("columns", "margin"),
    [
        ({"answers": ["No", "Hello"], "scores": [1, 3]}, 2.0),
        ({"answers": ["No", "Hello"], "ranks": [2, 1]}, None),
        ({"answers": [{"answer": "No", "rank": 2.0, "model": "m"}, {"answer": "Hello", "rank": 1.0}]}, None),
        ({"answers": [{"response": "No", "overall_score": 6}, {"response": "Hello", "overall_score": 8}]}, 2.0),
        ({"answers": '[{"text": "No", "score": 0}, {"text": "Hello", "score": 1}]'}, 1.0),
    ],
)
def test_ranked_answers_are_pairs_and_the_best_is_a_chat(columns: dict[str, Any], margin: float | None) -> None:
    for asked in ({"prompt": "\n\nHuman: Hi\n\nAssistant: "}, {"question": "Hi"}, {"instruction": "Hi", "input": ""}):
        assert parse_pairs(asked | columns) == [PairRow(ASKED, "Hello", "No", margin)]
        assert parse_sft(asked | columns).messages == (*ASKED, Message("assistant", "Hello"))


def test_no_ranks_are_proposed_as_scores() -> None:
    with pytest.raises(ValueError, match=r"no 'scores'; the row has: answers, prompt, rank$"):
        parse_pairs({"prompt": "Hi", "answers": ["a", "b"], "rank": [1, 2]})
    with pytest.raises(ValueError, match=r"no 'prompt'; the row has: answers, ranks"):
        parse_pairs({"answers": ["a", "b"], "ranks": [1, 2]})
    with pytest.raises(ValueError, match=r"answers: objects, of which not each has a text .* and a score"):
        parse_pairs({"prompt": "Hi", "answers": [{"text": "a", "score": 1}, {"text": "b"}]})
