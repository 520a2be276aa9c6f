"""Turns of a chat out of the forms that files have: lists of messages, JSON text of one, hh's whole dialogues."""

import json
import re
from collections.abc import Mapping
from typing import Any

from triptych.data.cells import from_json, shown, text

Turns = list[Any]
"""Messages as mappings with `role` and `content`; what is no message of a known form stays as it is."""

_SPEAKERS = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "tool": "tool",
    "observation": "tool",
}
"""Role of each speaker that ShareGPT's `from` names."""
_KEYS, _FORMS = {"role", "content", "from", "value"}, ({"role", "content"}, {"from", "value"})
_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLE = {"Human": "user", "Assistant": "assistant"}


def turns(value: Any, name: str) -> Turns:
    """The messages of a list of them, or of JSON text of one; ValueError says what is wrong.

    ShareGPT's `from` and `value` become `role` and `content`, and a content that is OpenAI's list of parts becomes
    text, its parts on lines of their own, as vLLM's endpoint joins them. All other fields of a message stay.
    """
    if isinstance(value, str):  # a CSV cell
        value = from_json(value, name, "a list of messages")
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: not a list of messages, or an empty one")
    return [_turn(item, f"{name}[{index}]") for index, item in enumerate(value)]


def dialogue(value: str) -> Turns | None:
    r"""The turns of a text such as `\n\nHuman: Hi\n\nAssistant: Hello`; None: it is no dialogue.

    What one speaker says in a row is one turn. An `Assistant:` that is still to speak is a last turn without text.
    """
    if not value.startswith(("\n\nHuman:", "Human:")) or "\n\nAssistant:" not in value:
        return None
    _, *pieces = _TURN.split("\n\n" + value.removeprefix("\n\n"))
    found: Turns = []
    for speaker, said in zip(pieces[::2], pieces[1::2], strict=True):
        if found and found[-1]["role"] == _ROLE[speaker]:
            found[-1]["content"] += f"\n\n{said.strip()}"
        else:
            found.append({"role": _ROLE[speaker], "content": said.strip()})
    return found


def spoken(value: Any, name: str) -> Turns:
    """The turns of a text that the user says, of a dialogue, of a list of messages, or of JSON text of one."""
    if isinstance(value, list):
        return turns(value, name)
    if not isinstance(value, str):
        raise ValueError(f"{name}: {type(value).__name__} in place of text or a list of messages")
    return dialogue(value) or messages_in(value) or [{"role": "user", "content": text(value, name)}]


def messages_in(value: str) -> Turns | None:
    """The messages that a text, as of a CSV cell, is the JSON of; None: it is a text like any other."""
    if not value.lstrip().startswith("["):
        return None
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    if not found or not all(isinstance(item, dict) and _KEYS & item.keys() in _FORMS for item in found):
        return None
    return turns(found, "messages")


def _turn(item: Any, name: str) -> Any:
    if not isinstance(item, Mapping):
        return item
    message = {str(key): value for key, value in item.items()}
    if message.get("role") is None and isinstance(message.get("from"), str):
        message = _of_sharegpt(message, name)
    if isinstance(message.get("content"), list):
        message["content"] = _joined(message["content"], f"{name}.content")
    return message


def _of_sharegpt(message: dict[str, Any], name: str) -> dict[str, Any]:
    speaker, said = message["from"], message.get("value")
    rest = {key: value for key, value in message.items() if key not in ("from", "value", "role", "content")}
    if speaker == "function_call":
        call = from_json(said, f"{name}.value", "a call") if isinstance(said, str) else said
        return rest | {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    if speaker not in _SPEAKERS:
        raise ValueError(f"{name}.from: {shown(speaker)} is none of {', '.join(_SPEAKERS)}, function_call")
    return rest | {"role": _SPEAKERS[speaker], "content": said}


def _joined(parts: list[Any], name: str) -> str:
    return "\n".join(_part(part, f"{name}[{index}]") for index, part in enumerate(parts))


def _part(part: Any, name: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        raise ValueError(f"{name}: {shown(kind)} in place of a part of type 'text'; only text is learned")
    return str(part["text"])
