"""Rows of ranked answers: their shapes, their order, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from triptych.data.rankings import apart, encode_rankings, parse_ranking


@pytest.mark.parametrize(
    ("record", "scores"),
    [
        ({"answers": ["b", "c", "a"], "scores": [0.5, -1, 2]}, (2, 0.5, -1)),
        ({"answers": ["b", "c", "a"], "ranks": [2, 3, 1]}, (-1, -2, -3)),
        ({"answers": [{"text": t, "score": s} for t, s in (("c", 1), ("a", 3), ("b", 2))]}, (3, 2, 1)),
        ({"answers": '["b", "c", "a"]', "scores": "[2, 1, 3]"}, (3, 2, 1)),
    ],
)
def test_answers_stand_the_best_first(record: dict[str, Any], scores: tuple[float, ...]) -> None:
    row = parse_ranking({"prompt": "How?"} | record)
    assert [message.content for message in row.messages] == ["How?"]
    assert (row.answers, row.scores) == (("a", "b", "c"), scores)


def test_a_pair_is_a_ranking_of_two() -> None:
    row = parse_ranking({"prompt": "How?", "chosen": "So.", "rejected": "No."})
    assert (row.answers, row.scores) == (("So.", "No."), (1, 0))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"answers": ["a", "b"], "scores": [1, 1]}, "scores: no two differ"),
        ({"answers": ["a", "b"], "scores": [1]}, "2 answers and 1 scores"),
        ({"answers": ["a", "b"]}, r"no 'scores' \(or 'ranks'\); the row has: answers, prompt"),
        ({"answers": ["a", "b", "c"], "scores": [1, 2, 3]}, "answers: 3; allowed: up to 2"),
        ({"answers": ["a", 7], "scores": [1, 2]}, r"answers\[1\]"),
        ({"answers": ["a", "b"], "scores": [1, "x"]}, r"scores\[1\]"),
        ({"response": "So.", "score": 1}, "one answer with its rating; allowed: the answers to a prompt in one row"),
    ],
)
def test_what_ranks_nothing_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_ranking({"prompt": "How?"} | record, most=2)


def test_a_ranking_is_encoded_whole_or_left_out(tiny_model_dir: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_model_dir)
    answers = ["It is so.", "No.", "It is not so, and never was."]
    row = parse_ranking({"prompt": "How?", "answers": answers, "scores": [3, 1, 2]})
    [example] = encode_rankings([row], tokenizer, 10_000).items
    parts = apart(example.input_ids, example.lengths)
    assert [len(part) for part in parts] == example.lengths
    assert example.scores == [3, 2, 1]
    for part, answer in zip(parts, (answers[0], answers[2], answers[1]), strict=True):
        assert part[: example.start] == parts[0][: example.start]
        assert tokenizer.decode(part[example.start :]).startswith(answer)
    assert encode_rankings([row], tokenizer, max(example.lengths)).items == [example]
    shorter = encode_rankings([row], tokenizer, max(example.lengths) - 1)
    assert (shorter.items, shorter.dropped) == ([], 1)
