"""Each malformed record is refused with its reason."""

import json
from typing import Any

import pytest

from triptych.data.rows import (
    Message,
    PairRow,
    PromptRow,
    SftRow,
    TextRow,
    parse_pairs,
    parse_pairs_with_margin,
    parse_prompt,
    parse_sft,
    parse_text,
)

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


def test_the_two_shapes_of_a_chat_are_the_same_row() -> None:
    row = SftRow((Message("user", "Hi"), Message("assistant", "Hello")))
    assert parse_sft({"prompt": "Hi", "response": "Hello"}) == row
    assert parse_sft({"messages": [USER, ASSISTANT], "other": 1}) == row
    assert parse_sft({"messages": '[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]'}) == row
    assert parse_sft({"prompt": [USER], "response": "Hello", "messages": None}) == row


def test_pairs_and_prompts() -> None:
    prompt = (Message("user", "Hi"),)
    assert parse_pairs({"prompt": "Hi", "chosen": "a", "rejected": "b"}) == [PairRow(prompt, "a", "b", None)]
    assert parse_pairs({"prompt": [USER], "chosen": "a", "rejected": "b", "margin": "1.5"})[0].margin == 1.5
    assert parse_pairs({"prompt": [USER], "chosen": "a", "rejected": "b", "margin": ""})[0].margin is None
    assert parse_prompt({"prompt": "Hi"}) == parse_prompt({"messages": [USER]}) == PromptRow(prompt)


def test_a_prompt_keeps_the_other_columns_of_its_record() -> None:
    assert parse_prompt({"prompt": "7 * 6?", "answer": "42", "tags": ["a"]}).fields == {"answer": "42", "tags": ["a"]}
    assert parse_prompt({"messages": [USER], "prompt": "Hi", "answer": None}).fields == {"prompt": "Hi", "answer": None}
    assert parse_prompt({"messages": None, "prompt": "Hi"}).fields == {}


@pytest.mark.parametrize("text", [False, True], ids=["lists", "CSV cells"])
def test_ranked_answers_are_all_pairs_whose_scores_differ(text: bool) -> None:
    answers, scores = ["c", "a", "d", "b"], [1, 3.5, 1, 2]
    record = {"prompt": "Hi", "answers": answers, "scores": scores}
    pairs = parse_pairs(record | ({"answers": json.dumps(answers), "scores": json.dumps(scores)} if text else {}))
    assert [(pair.chosen, pair.rejected, pair.margin) for pair in pairs] == [
        ("a", "b", 1.5),
        ("a", "c", 2.5),
        ("a", "d", 2.5),
        ("b", "c", 1.0),
        ("b", "d", 1.0),
    ]
    assert parse_pairs_with_margin(record) == pairs


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scores": None}, "no 'scores'"),
        ({"scores": [1]}, "2 answers and 1 scores"),
        ({"scores": [1, 1]}, "no two differ"),
        ({"scores": [1, "x"]}, r"scores\[1\]: 'x' is not a number"),
        ({"answers": ["a", 3]}, r"answers\[1\]: int in place of text"),
        ({"answers": ["a", "a"]}, "same text"),
        ({"answers": "a"}, "neither a list nor JSON"),
        ({"answers": '"a"', "scores": [1]}, "answers: str in place of a list"),
    ],
)
def test_malformed_rankings(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_pairs({"prompt": "Hi", "answers": ["a", "b"], "scores": [1, 0]} | change)


@pytest.mark.parametrize(("margin", "reason"), [(None, "no 'margin'"), ("", "no 'margin'"), (-1, "the better one")])
def test_a_pair_without_a_margin_is_malformed_where_one_is_needed(margin: object, reason: str) -> None:
    record = {"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": margin}
    with pytest.raises(ValueError, match=reason):
        parse_pairs_with_margin(record)
    assert parse_pairs_with_margin(record | {"margin": 0}) == parse_pairs(record | {"margin": 0})


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({}, "no 'prompt' and no 'response'"),
        ({"prompt": "Hi", "text": "x"}, r"no 'response' \(or 'messages'.*the row has: prompt, text"),
        ({"prompt": "Hi", "response": None}, "no 'response'"),
        ({"prompt": "Hi", "response": "  \n"}, "response: empty"),
        ({"prompt": "Hi", "response": 3}, "response: int in place of text"),
        ({"prompt": "Hi", "response": "\ud800"}, "surrogate"),
        ({"prompt": {"a": 1}, "response": "x"}, "prompt: dict in place of text or a list"),
        ({"messages": "no JSON"}, "neither a list of messages nor JSON"),
        ({"messages": []}, "empty one"),
        ({"messages": [USER]}, "no turn is the assistant's"),
        ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\]: not a message"),
        ({"messages": [USER, {"role": "bot", "content": "x"}]}, r"messages\[1\]\.role: 'bot' is none of"),
        ({"messages": [USER, {"role": "system", "content": "x"}, ASSISTANT]}, "can only come first"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, r"messages\[1\]\.content: empty"),
    ],
)
def test_malformed_chats(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_sft(record)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"rejected": "a"}, "same text"),
        ({"margin": "much"}, "not a number"),
        ({"margin": float("nan")}, "not a finite number"),
        ({"margin": True}, "not a finite number"),
        ({"margin": [1]}, "not a number"),
        ({"prompt": [USER, ASSISTANT]}, "the last turn is the assistant's"),
        ({"chosen": None}, r"no 'chosen' \(or 'answers' and 'scores' in place of them"),
    ],
)
def test_malformed_pairs(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_pairs({"prompt": "Hi", "chosen": "a", "rejected": "b"} | change)


def test_malformed_prompts() -> None:
    with pytest.raises(ValueError, match="the last turn is the assistant's"):
        parse_prompt({"messages": [USER, ASSISTANT]})
    with pytest.raises(ValueError, match="no 'prompt'"):
        parse_prompt({"topic": "Hi"})


@pytest.mark.parametrize(
    ("labels", "value", "name"),
    [
        (("bad", "good"), "good", "good"),
        (("bad", "good"), 1, "good"),
        (("bad", "good"), "0", "bad"),
        (("1", "0"), 1, "1"),  # a name comes before an index
        (("1", "0"), "0", "0"),
        (None, 7, "7"),
    ],
)
def test_labels_by_name_or_index(labels: tuple[str, ...] | None, value: object, name: str) -> None:
    assert parse_text({"text": "Dull.", "label": value}, labels) == TextRow("Dull.", name)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "Dull."}, "no 'label'"),
        ({"label": 1}, "no 'text'"),
        ({"text": " ", "label": 1}, "text: empty"),
        ({"text": "Dull.", "label": ""}, "label: empty"),
        ({"text": "Dull.", "label": "so-so"}, "label: 'so-so' is none of bad, good, nor an index below 2"),
        ({"text": "Dull.", "label": 2}, "label: '2' is none of"),
        ({"text": "Dull.", "label": -1}, "label: '-1' is none of"),
        ({"text": "Dull.", "label": True}, "label: bool in place of"),
        ({"text": "Dull.", "label": 1.0}, "label: float in place of"),
    ],
)
def test_malformed_texts(record: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_text(record, ("bad", "good"))
