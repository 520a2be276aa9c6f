"""What a message says beside role and content is honoured, or its row is malformed."""

import json
from typing import Any

import pytest

from triptych.data.rows import Message, PromptRow, SftRow, parse_pairs, parse_prompt, parse_sft
from triptych.data.sources import _digest

USER = {"role": "user", "content": "Does it rain in Oslo?"}
CALL = {"id": "a1", "type": "function", "function": {"name": "rain", "arguments": {"city": "Oslo"}}}
TOOLS = [{"type": "function", "function": {"name": "rain", "parameters": {"type": "object"}}}]


def assistant(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "Yes.", **fields}


@pytest.mark.parametrize(
    ("fields", "learned"),
    [
        ({"weight": 0}, False),
        ({"weight": 1.0}, True),
        ({"weight": None}, True),
        ({"train": False}, False),
        ({"training": True, "weight": 1}, True),
        ({"loss": 0, "trainable": False}, False),
    ],
)
def test_weights_and_train_flags_say_what_is_learned(fields: dict[str, Any], learned: bool) -> None:
    row = parse_sft({"messages": [USER, assistant(**fields), USER, assistant()]})
    assert [message.learned for message in row.messages] == [True, learned, True, True]


def test_calls_are_objects_and_null_fields_are_nothing() -> None:
    function = {"name": "rain", "arguments": '{"city": "Oslo", "unit": null}'}
    padded = {"id": "a1", "type": "function", "index": None, "function": {**function, "strict": None}}
    row = parse_sft(
        {
            "tools": json.dumps(TOOLS),
            "messages": [
                USER | {"tool_calls": None, "weight": None, "anything": None},
                {"role": "assistant", "content": None, "tool_calls": [padded]},
                {"role": "tool", "content": "yes", "tool_call_id": "a1", "name": "rain"},
                assistant(),
            ],
        }
    )
    call = {"type": "function", "id": "a1", "function": {"name": "rain", "arguments": {"city": "Oslo", "unit": None}}}
    assert row == SftRow(
        (
            Message("user", USER["content"]),
            Message("assistant", "", extra={"tool_calls": [call]}),
            Message("tool", "yes", extra={"tool_call_id": "a1", "name": "rain"}),
            Message("assistant", "Yes."),
        ),
        tuple(TOOLS),
    )


def test_prompts_and_pairs_have_tools_too() -> None:
    chat = [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": ""}]
    row = parse_prompt({"messages": chat, "tools": TOOLS})
    assert isinstance(row, PromptRow)
    assert row.tools == tuple(TOOLS)
    assert row.messages[-1] == Message("tool", "")
    pair = parse_pairs({"prompt": chat, "chosen": "Yes.", "rejected": "No.", "tools": TOOLS})[0]
    assert (pair.tools, pair.prompt) == (row.tools, row.messages)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weight": 0.5}, r"messages\[1\]\.weight: 0\.5; allowed: 0 or 1"),
        ({"weight": "1"}, r"messages\[1\]\.weight: '1'"),
        ({"weight": 0, "train": True}, "weight and train contradict each other"),
        ({"weight": 0}, "every turn of the assistant has weight 0"),
        ({"function_call": {"name": "f"}}, r"messages\[1\]\.function_call: would be lost; a message may have: role"),
        ({"tool_calls": [{"name": "rain"}]}, r"messages\[1\]\.tool_calls\[0\]: not a call"),
        ({"tool_calls": "{"}, r"messages\[1\]\.tool_calls: neither a list nor JSON"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}, r"\.arguments: text that is no JSON"),
        ({"tool_calls": [{"function": {"name": "f", "arguments": [1]}}]}, r"\.arguments: list in place of an object"),
        ({"tool_calls": [{"type": "custom", "function": {"name": "f"}}]}, r"\[0\]\.type: 'custom'"),
        ({"tool_calls": [{"function": {"name": "f", "thought": "x"}}]}, r"\[0\]\.function\.thought: would be lost"),
        (
            {"tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}]},
            "arguments: two values of 'a'",
        ),
        ({"tool_call_id": "a"}, r"messages\[1\]\.tool_call_id: on the assistant's turn"),
        ({"reasoning_content": 3}, r"messages\[1\]\.reasoning_content: int in place of text"),
        ({"content": ""}, r"messages\[1\]\.content: empty"),
    ],
)
def test_what_would_be_lost_makes_the_row_malformed(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_sft({"messages": [USER, assistant(**change)]})


@pytest.mark.parametrize("as_text", [False, True])
def test_values_nested_too_deeply_make_the_row_malformed(as_text: bool) -> None:
    deep: Any = {}
    for _ in range(700):
        deep = {"a": deep}
    call = {"function": {"name": "f", "arguments": json.dumps(deep) if as_text else deep}}
    with pytest.raises(ValueError, match=r"messages\[1\].tool_calls\[0\].function.arguments: nested more than 64"):
        parse_sft({"messages": [USER, assistant(tool_calls=[call])]})
    with pytest.raises(ValueError, match="tools: nested more than 64"):
        parse_sft({"messages": [USER, assistant()], "tools": [deep]})


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tools": "x"}, "tools: neither a list"),
        ({"tools": [3]}, r"tools\[0\]: int in place of an object"),
        ({"functions": [{}]}, "functions: would be lost"),
        ({"chat_template_kwargs": {"a": 1}}, "chat_template_kwargs: would be lost"),
        ({"messages": [USER | {"weight": 1}, assistant()]}, r"messages\[0\]\.weight: 1 on the user's turn"),
        ({"messages": [USER | {"tool_calls": [CALL]}, assistant()]}, r"messages\[0\]\.tool_calls: on the user's turn"),
    ],
)
def test_columns_that_would_be_lost(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_sft({"messages": [USER, assistant()]} | change)


def test_the_digest_of_rows_that_say_nothing_more_is_that_of_earlier_versions() -> None:
    before = "8114499a19f4"
    plain = SftRow((Message("user", "Hi"), Message("assistant", "Hello")))
    assert _digest([plain])[0].startswith(before)
    weighted = SftRow((Message("user", "Hi"), Message("assistant", "Hello", learned=False)))
    assert not _digest([weighted])[0].startswith(before)
