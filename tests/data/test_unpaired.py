"""Rows of one answer that is desirable or not: every shape that tells it, and what does not."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from triptych.data.rows import Message, SftRow, UnpairedRow
from triptych.data.unpaired import encode_unpaired, parse_unpaired

ASKED = {"role": "user", "content": "How?"}
ANSWER = {"role": "assistant", "content": "So."}


@pytest.fixture(scope="module")
def tokenizer(_tiny_model: Path) -> Any:
    return AutoTokenizer.from_pretrained(_tiny_model)


def row(answer: str, *, desirable: bool) -> UnpairedRow:
    return UnpairedRow(SftRow((Message("user", "How?"), Message("assistant", answer))), desirable)


@pytest.mark.parametrize(
    ("record", "good", "bad"),
    [
        ({"prompt": "How?", "completion": "So."}, True, False),
        ({"prompt": "How?", "completion": "So."}, 1, 0),
        ({"prompt": "How?", "response": "So."}, "true", "false"),
        ({"prompt": [ASKED], "completion": [ANSWER]}, True, False),
        ({"messages": [ASKED, ANSWER]}, True, False),
        ({"instruction": "How?", "output": "So."}, True, False),
    ],
)
def test_a_labelled_answer_is_a_row(record: dict[str, Any], good: Any, bad: Any) -> None:
    assert parse_unpaired(record | {"label": good}) == [row("So.", desirable=True)]
    assert parse_unpaired(record | {"label": bad}) == [row("So.", desirable=False)]


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "How?", "chosen": "So.", "rejected": "No."},
        {"chosen": [ASKED, ANSWER], "rejected": [ASKED, ANSWER | {"content": "No."}]},
    ],
)
def test_a_pair_is_two_rows(record: dict[str, Any]) -> None:
    assert parse_unpaired(record) == [row("So.", desirable=True), row("No.", desirable=False)]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"prompt": "How?", "completion": "So."},
            r"no 'label' \(or 'chosen' and 'rejected'\); the row has: completion",
        ),
        ({"prompt": "How?", "completion": "So.", "label": "maybe"}, "label: 'maybe' is neither true nor false"),
        ({"prompt": "How?", "completion": "So.", "label": 2}, "label: 2 is neither true nor false"),
        ({"prompt": "How?", "completion": "So.", "score": 0.5}, "score: says how good, and not good or bad"),
        ({"prompt": "How?", "answers": ["a", "b"], "scores": [1, 2]}, "answers: says how good"),
        ({"prompt": "How?", "completion": " ", "label": True}, "completion"),
        ({"prompt": "How?", "chosen": "So."}, "no 'rejected'"),
    ],
)
def test_what_does_not_tell_good_from_bad_is_refused(record: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_unpaired(record)


def test_an_answer_stands_behind_its_prompt_and_longer_rows_are_left_out(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    rows = [row("So.", desirable=True), row("So it is, and so it will be. " * 20, desirable=False)]
    whole = encode_unpaired(rows, tokenizer, 10_000)
    found = encode_unpaired(rows, tokenizer, len(whole.items[0].input_ids))
    assert [len(whole.items), len(found.items), found.dropped] == [2, 1, 1]
    [example] = found.items
    assert example == whole.items[0]
    assert tokenizer.decode(example.input_ids[example.start :]).startswith("So.")
    assert "How?" in tokenizer.decode(example.input_ids[: example.start])
    assert example.input_ids[: example.start] == whole.items[1].input_ids[: whole.items[1].start]
