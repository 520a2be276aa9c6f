"""Table of tokenizers and chat templates: `python -m tests.support.template_table docs/reference/templates.md`.

A cell says how chats of three answers become examples: how many, and how many of their answers merge into the prompt in
the text as a whole, so that the prompt's tokens stand and the answer's follow.
"""

import sys
from pathlib import Path

from tests.support.tokenizers import TEMPLATES, TOKENIZERS, make_tokenizer
from triptych.data.chat import ChatTemplate
from triptych.data.encode import encode_sft
from triptych.data.end_tokens import end_of_turn
from triptych.data.rows import Message, SftRow

QUESTION, ANSWER = Message("user", "Why is that so?"), Message("assistant", "It is.")
TOLD = Message("tool", "yes")
CALL = {"type": "function", "function": {"name": "rain", "arguments": {"city": "Oslo"}}}
CHATS = {
    "a system turn": (Message("system", "You are a guide."), QUESTION, ANSWER),
    "two questions in a row": (QUESTION, QUESTION, ANSWER),
    "the assistant first": (ANSWER, QUESTION, ANSWER),
    "thoughts": (QUESTION, Message("assistant", "It is.", extra={"reasoning_content": "rain"})),
    "a call": (QUESTION, Message("assistant", "", extra={"tool_calls": [CALL]})),
    "a tool's turn": (QUESTION, ANSWER, TOLD, ANSWER),
}
HEAD = """# Tokenizers and chat templates

Written by `python -m tests.support.template_table docs/reference/templates.md`; `tests/data/test_templates.py` holds
every cell: each learned answer stands behind the tokens that an engine is given for it.

## Chats of three answers

Examples that the chat becomes, and behind a plus those of its answers whose beginning would merge into the prompt:
there the prompt's tokens stand and the answer's follow.
"""


def table() -> str:
    """The page."""
    lines = [HEAD, f"| tokenizer | {' | '.join(TEMPLATES)} |", f"|{' --- |' * (len(TEMPLATES) + 1)}"]
    lines += [f"| {kind} | {' | '.join(_cell(kind, name) for name in TEMPLATES)} |" for kind in TOKENIZERS]
    lines += ["", "## What each template takes", "", f"| template | end of a turn | {' | '.join(CHATS)} |"]
    lines.append(f"|{' --- |' * (len(CHATS) + 2)}")
    reasons: dict[str, int] = {}
    for name in TEMPLATES:
        tokenizer = make_tokenizer("bytes", name)
        end = tokenizer.convert_ids_to_tokens(end_of_turn(tokenizer)).replace("|", "\\|")
        verdicts = [_verdict(name, chat) for chat in CHATS.values()]
        marks = [f"refused ({reasons.setdefault(v, len(reasons) + 1)})" if v else "learned" for v in verdicts]
        lines.append(f"| {name} | `{end}` | {' | '.join(marks)} |")
    lines += ["", *(f"{number}. {reason}" for reason, number in reasons.items())]
    return "\n".join(lines) + "\n"


def _cell(kind: str, template: str) -> str:
    tokenizer = make_tokenizer(kind, template)
    chat = (QUESTION, ANSWER) * 3
    merged = 0
    for turn in ChatTemplate(tokenizer).turns(chat):
        prompt, whole = tokenizer([turn.prompt, turn.prompt + turn.answer], add_special_tokens=False)["input_ids"]
        merged += whole[: len(prompt)] != prompt
    count = len(encode_sft([SftRow(chat)], tokenizer, 10_000).items)
    return f"{count} + {merged}" if merged else str(count)


def _verdict(template: str, chat: tuple[Message, ...]) -> str | None:
    """The reason for which a template's chat is refused; None where it is learned."""
    try:
        ChatTemplate(make_tokenizer("bytes", template)).turns(chat)
    except ValueError as error:
        return str(error)
    return None


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(table(), encoding="utf-8")
