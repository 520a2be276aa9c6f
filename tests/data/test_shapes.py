"""Rows in the shapes that other tools write are the rows that ours are, and what they say beside is not lost."""

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
    parse_prompt,
    parse_sft,
    parse_text,
)
from triptych.data.shapes import shape_of, shaped, unread_columns

USER, ANSWER, WORSE = (
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello"},
    {"role": "assistant", "content": "No"},
)
SYSTEM = {"role": "system", "content": "Be kind."}
CHAT = SftRow((Message("user", "Hi"), Message("assistant", "Hello")))
PAIR = PairRow((Message("user", "Hi"),), "Hello", "No", None)
KIND = Message("system", "Be kind.")


@pytest.mark.parametrize(
    ("shape", "record"),
    [
        ("messages", {"messages": [USER, ANSWER]}),
        ("messages", {"messages": json.dumps([USER, ANSWER])}),
        ("prompt and response", {"prompt": "Hi", "response": "Hello"}),
        ("prompt and completion", {"prompt": "Hi", "completion": "Hello"}),
        ("prompt and completion", {"prompt": [USER], "completion": [ANSWER]}),
        ("prompt and completion", {"prompt": json.dumps([USER]), "completion": json.dumps([ANSWER])}),
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello", "text": "Below is an instruction ..."}),
        ("dolly", {"instruction": "Hi", "context": "", "response": "Hello", "category": "talk"}),
        ("question and answer", {"question": "Hi", "answer": "Hello", "id": 3}),
        ("question and response", {"system_prompt": "", "question": "Hi", "response": "Hello"}),
        ("ShareGPT", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]}),
        ("ShareGPT", {"conversation": [USER, ANSWER]}),
        ("dialogue", {"text": "\n\nHuman: Hi\n\nAssistant: Hello"}),
        ("whole chats, of which the chosen", {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}),
    ],
)
def test_shapes_of_a_chat(shape: str, record: dict[str, Any]) -> None:
    assert parse_sft(record) == CHAT
    found = shape_of(record, "sft")
    assert found is not None
    assert found.name == shape


@pytest.mark.parametrize(
    ("shape", "record"),
    [
        ("prompt, chosen and rejected", {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}),
        ("prompt, chosen and rejected", {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]}),
        ("prompt, chosen and rejected", {"prompt": "Hi", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]}),
        ("prompt, chosen and rejected", {"prompt": "\n\nHuman: Hi\n\nAssistant:", "chosen": "Hello", "rejected": "No"}),
        (
            "prompt, chosen and rejected",
            {"prompt": "Hi", "chosen": json.dumps([USER, ANSWER]), "rejected": json.dumps([USER, WORSE])},
        ),
        ("whole chats, chosen and rejected", {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]}),
        (
            "whole chats, chosen and rejected",
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
        ),
        ("question, chosen and rejected", {"system": "", "question": "Hi", "chosen": "Hello", "rejected": "No"}),
        ("alpaca, chosen and rejected", {"instruction": "Hi", "input": "", "chosen": "Hello", "rejected": "No"}),
        (
            "ShareGPT, chosen and rejected",
            {
                "conversations": [{"from": "human", "value": "Hi"}],
                "chosen": {"from": "gpt", "value": "Hello"},
                "rejected": {"from": "gpt", "value": "No"},
            },
        ),
    ],
)
def test_shapes_of_a_pair(shape: str, record: dict[str, Any]) -> None:
    assert parse_pairs(record) == [PAIR]
    found = shape_of(record, "pairs")
    assert found is not None
    assert found.name == shape


@pytest.mark.parametrize(
    ("record", "fields"),
    [
        ({"messages": [USER]}, {}),
        ({"question": "Hi", "answer": "42"}, {"answer": "42"}),
        ({"instruction": "Hi", "input": None, "output": "42"}, {"output": "42"}),
        ({"conversations": [{"from": "human", "value": "Hi"}], "id": 1}, {"id": 1}),
        ({"chosen": [USER, ANSWER], "rejected": [USER, WORSE], "id": 1}, {"id": 1}),
    ],
)
def test_shapes_of_a_prompt_keep_the_other_columns(record: dict[str, Any], fields: dict[str, Any]) -> None:
    assert parse_prompt(record) == PromptRow((Message("user", "Hi"),), fields)


def test_glue_s_sentences_are_texts() -> None:
    assert parse_text({"sentence": "Dull.", "label": 0}, ("bad", "good")) == TextRow("Dull.", "bad")


def test_nothing_that_belongs_to_a_chat_is_dropped() -> None:
    assert (
        parse_sft({"instruction": "Add.", "input": "1 and 2", "output": "3"}).messages[0].content == "Add.\n\n1 and 2"
    )
    longer = {"instruction": "Hi", "output": "Hello", "history": [["a", "b"]], "system": "Be kind."}
    assert parse_sft(longer).messages == (KIND, Message("user", "a"), Message("assistant", "b"), *CHAT.messages)
    assert parse_sft({"prompt": "Hi", "response": "Hello", "system": "Be kind."}).messages == (KIND, *CHAT.messages)
    assert parse_sft({"messages": [SYSTEM, USER, ANSWER], "system": "Be kind."}).messages == (KIND, *CHAT.messages)
    system = {"system": "Be kind.", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]}
    assert parse_pairs(system)[0].prompt == (KIND, Message("user", "Hi"))


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Hi", "input": "there", "response": "Hello"},
        {"instruction": "Hi", "context": "there", "output": "Hello"},
        {"question": "Hi", "context": "there", "answer": "Hello"},
        {"question": "Hi", "context": "there", "chosen": "Hello", "rejected": "No"},
        {"question": "Hi", "context": "there", "answers": ["Hello", "No"], "scores": [1, 0]},
    ],
)
def test_what_a_question_is_about_stands_behind_it(row: dict[str, Any]) -> None:
    assert parse_prompt(row).messages[0].content == "Hi\n\nthere"
    asked = parse_pairs(row)[0].prompt if "chosen" in row or "answers" in row else parse_sft(row).messages[:1]
    assert asked == (Message("user", "Hi\n\nthere"),)


def test_a_sentence_with_a_second_text_is_no_text_of_its_own() -> None:
    with pytest.raises(ValueError, match=r"no 'text'; the row has: label, question, sentence; perhaps columns"):
        parse_text({"question": "Is it?", "sentence": "It is.", "label": 1})


def test_columns_of_which_nothing_is_read_are_told() -> None:
    row = {"question": "Hi", "context": "there", "answer": "Hello", "id": 3, "reasoning": "x", "empty": None}
    shape = shape_of(row, "sft")
    assert shape is not None
    assert unread_columns(row, shape) == ["id", "reasoning"]


def test_parts_of_a_content_are_lines_of_its_text() -> None:
    parts = [{"type": "text", "text": "one", "image_url": None}, {"type": "text", "text": "two"}]
    assert parse_prompt({"messages": [{"role": "user", "content": parts}]}).messages[0].content == "one\ntwo"
    with pytest.raises(ValueError, match=r"messages\[0\]\.content\[0\]: 'image_url' in place of a part of type 'text'"):
        parse_prompt({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]})


def test_an_answer_that_is_json_stays_text_behind_a_prompt_that_is_text() -> None:
    answer = json.dumps([USER, ANSWER])
    assert parse_sft({"prompt": "Write a chat as JSON.", "response": answer}).messages[1].content == answer
    assert parse_sft({"prompt": "[1, 2]", "response": "a list"}).messages[0].content == "[1, 2]"
    assert parse_prompt({"prompt": json.dumps([SYSTEM, USER])}).messages == (KIND, Message("user", "Hi"))


def test_a_dialogue_s_speaker_who_goes_on_has_one_turn() -> None:
    text = "\n\nHuman: Hi\n\nHuman: You there?\n\nAssistant: Yes.\n\nAssistant: I am.\n\nHuman: Good\n\nAssistant: Ok"
    assert [message.content for message in parse_sft({"text": text}).messages] == [
        "Hi\n\nYou there?",
        "Yes.\n\nI am.",
        "Good",
        "Ok",
    ]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (
            {"question": "Hi", "answer": "a", "response": "b"},
            r"could be question and answer .* or question and response",
        ),
        ({"question": "Hi", "context": ["a"], "answer": "b"}, "context: list behind str; both must be text, or name"),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "Be rude."}, "another system message"),
        ({"prompt": "Hi", "response": "Hello", "system": 3}, "system: int in place of text"),
        ({"instruction": "Hi", "output": "Hello", "history": "x"}, "history: not a list of pairs"),
        ({"conversations": [{"from": "narrator", "value": "x"}]}, r"conversations\[0\]\.from: 'narrator' is none of"),
        ({"instruction": "Hi", "output": " "}, "output: empty"),
        ({"question": 3, "answer": "a"}, "question: int in place of text or a list of messages"),
        ({"text": "\n\nHuman: Hi\n\nAssistant: "}, r"messages\[1\]\.content: empty"),
        ({"text": "Just a text."}, r"no 'prompt' and no 'response' .*; the row has: text$"),
        ({"Prompt": "Hi", "Reply": "a"}, r"perhaps columns: \{prompt: Prompt, response: Reply\}$"),
        ({"prompt": "Hi", "answer": "a"}, r"perhaps columns: \{response: answer\}$"),
    ],
)
def test_chats_that_are_refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_sft(record)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"chosen": "a", "rejected": "b"}, "no 'prompt'"),
        ({"prompt": "Ho", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]}, "do not begin with the prompt"),
        ({"chosen": [USER, ANSWER, USER, ANSWER], "rejected": [USER, WORSE]}, "part at turn 2, before their last"),
        (
            {"chosen": [USER, ANSWER | {"tool_calls": [{}]}], "rejected": [USER, WORSE]},
            "chosen: tool_calls of its answer",
        ),
        ({"chosen": [USER, ANSWER, USER], "rejected": [USER, WORSE]}, "chosen: the last turn is the user's"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": 10**400}, "margin: .* is not a finite number"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "margin": 1e39}, "margin: 1e.39 is not a finite number"),
        ({"prompt": "Hi", "answers": ["a", "b"], "scores": [1e308, -1e308]}, "scores.* is not a finite number"),
        ({"prompt": "Hi", "answers": ["a"] * 999, "scores": [*range(999)]}, "999 make too many pairs; allowed: 256"),
        ({"prompt": "Hi", "better": "a", "worse": "b"}, r"perhaps columns: \{chosen: better, rejected: worse\}$"),
    ],
)
def test_pairs_that_are_refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_pairs(record)


def test_the_only_column_left_is_proposed() -> None:
    with pytest.raises(
        ValueError, match=r"no 'text'; the row has: Bericht, label; perhaps columns: \{text: Bericht\}$"
    ):
        parse_text({"label": 1, "Bericht": "Gut."})


@pytest.mark.parametrize("weight", [0, 0.5, False, "0.0", "1e400"])
def test_a_weight_of_a_whole_row_is_refused_rather_than_lost(weight: Any) -> None:
    for kind, row in (
        ("sft", {"prompt": "Hi", "response": "Hello"}),
        ("pairs", {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}),
        ("texts", {"text": "Hi", "label": "good"}),
    ):
        with pytest.raises(ValueError, match=r"weight: .* of a whole row would be lost"):
            shaped(row | {"weight": weight}, kind)
        for harmless in (None, "", 1, 1.0, True, "1", "3 kg"):
            assert shaped(row | {"weight": harmless}, kind) == {**shaped(row, kind), "weight": harmless}
    assert parse_prompt({"prompt": "Hi", "weight": weight}).fields == {"weight": weight}
