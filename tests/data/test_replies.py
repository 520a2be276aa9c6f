"""Replies are the tokens that the chat template writes between two turns, whatever tokenizer and template."""

from typing import Any

import pytest

from tests.data.test_templates import ENDS, FEW
from tests.support.tokenizers import make_tokenizer
from triptych.data.encode import encode_prompts, encode_sft
from triptych.data.replies import ReplyTokens
from triptych.data.rows import Message, PromptRow, SftRow
from triptych.errors import UserError

ANSWERS = ("Paris", "It is 12", "so? 0.5", "é ü 中", "a\n\nb")
REPLIES = ("Why is that so?", "  ok\n", "42", "Good morning,\n\ngood night. ")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ CONTENT }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def prompt_of(tokenizer: Any, chat: list[Message]) -> list[int]:
    return list(encode_prompts([PromptRow(tuple(chat))], tokenizer, 100_000)[0].input_ids)


def answer_of(tokenizer: Any, chat: list[Message], end: int) -> list[int]:
    """Tokens of the last turn of a chat, its end included."""
    learned = [label for label in encode_sft([SftRow(tuple(chat))], tokenizer, 100_000).items[-1].labels if label >= 0]
    ends = [place for place, label in enumerate(learned[:-1]) if label == end]
    return learned[ends[-1] + 1 if ends else 0 :]


@pytest.mark.parametrize(("kind", "template"), [one for one in FEW if one[1] != "qwen 3"])
def test_three_turns_are_the_tokens_of_the_whole_chat(kind: str, template: str) -> None:
    tokenizer: Any = make_tokenizer(kind, template)
    replies = ReplyTokens(tokenizer, "user")
    assert replies.end == tokenizer.convert_tokens_to_ids(ENDS[template])
    for shift in range(len(ANSWERS)):
        chat = [Message("user", "Which city is it?")]
        tokens = prompt_of(tokenizer, chat)
        for turn in range(3):
            chat.append(Message("assistant", ANSWERS[(shift + turn) % len(ANSWERS)]))
            tokens += answer_of(tokenizer, chat, replies.end)
            said = REPLIES[(shift + turn) % len(REPLIES)]
            chat.append(Message("user", said))
            tokens += replies.of(said)
            assert tokens == prompt_of(tokenizer, chat)


QWEN3 = (
    "{% set ns = namespace(asked=0) %}"
    "{% for m in messages if m.role == 'user' %}{% set ns.asked = ns.asked + 1 %}{% endfor %}"
    "{% set seen = namespace(users=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set seen.users = seen.users + 1 %}{% endif %}"
    "{% set parts = m.content.split('</think>\n\n') %}"
    "{% set thought = parts[0] + '</think>\n\n' if parts | length > 1 else '' %}"
    "<|im_start|>{{ 'user' if m.role == 'tool' else m.role }}\n"
    "{% if m.role == 'assistant' and seen.users == ns.asked %}"
    "{{ thought or ('<think>\n\n</think>\n\n' if loop.last else '') }}{% endif %}"
    "{{ parts[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Thoughts stay in the turns behind a user's last question, with replies of tools between; the last turn has empty ones
if it has none."""


def test_a_template_of_thoughts_keeps_them_for_a_tool_and_is_refused_for_a_user() -> None:
    tokenizer: Any = make_tokenizer("bytes", "chatml")
    tokenizer.chat_template = QWEN3
    with pytest.raises(UserError, match="thoughts of earlier turns out once a reply by the role user follows"):
        ReplyTokens(tokenizer, "user")
    found = tokenizer.decode(ReplyTokens(tokenizer, "tool").of("42"))
    assert found == "\n<|im_start|>user\n42<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("m.content", None),
        ("m.content | trim", None),
        ("m.content.split('</think>')[-1] if not loop.last else m.content", "leaves the thoughts"),
        ("m.content.upper() if m.role == 'assistant' and loop.revindex > 3 else m.content", "writes earlier turns"),
        ("m.content.upper() if m.role == 'assistant' and not loop.last else m.content", "writes earlier turns"),
    ],
)
def test_what_a_template_does_to_earlier_turns_is_seen_before_anything_is_sampled(
    content: str, message: str | None
) -> None:
    tokenizer: Any = make_tokenizer("bytes", "chatml")
    tokenizer.chat_template = CHATML.replace("CONTENT", content)
    if message is None:
        assert ReplyTokens(tokenizer, "user").end == tokenizer.convert_tokens_to_ids("<|im_end|>")
    else:
        with pytest.raises(UserError, match=message):
            ReplyTokens(tokenizer, "user")
