"""Rows of multiple choice: a prompt, the answers to choose from, and the right one."""

from collections.abc import Mapping
from typing import Any

from triptych.data.cells import from_json, shown, texts
from triptych.data.cells import listed as _list
from triptych.data.rows import ChoiceRow, parse_prompt


def parse_choice(record: Mapping[str, Any]) -> ChoiceRow:
    """Parse `{prompt, choices, answer}`, the prompt in any of its shapes; ValueError says what is wrong.

    `choices` are texts, or, as in ARC, a mapping of `text` and `label`. `answer` is a label, a choice, or its index
    from 0.
    """
    for name in ("choices", "answer"):
        if record.get(name) is None:
            raise ValueError(f"no {name!r}; the row has: {', '.join(sorted(map(str, record))) or 'nothing'}")
    labels, choices = _choices(record["choices"])
    asked = parse_prompt({name: value for name, value in record.items() if name not in ("choices", "answer")})
    return ChoiceRow(asked.messages, asked.fields, asked.tools, choices, _right(record["answer"], labels, choices))


def _choices(value: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels, none where there are none, and texts."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        value = from_json(value, "choices", "a list of texts")
    labels: tuple[str, ...] = ()
    if isinstance(value, Mapping):
        if not {"text", "label"} <= value.keys():
            raise ValueError("choices: a mapping without 'text' and 'label'")
        labels = texts(_list(value["label"], "choices.label"), "choices.label")
        value = value["text"]
    found = texts(_list(value, "choices"), "choices")
    if labels and len(labels) != len(found):
        raise ValueError(f"choices: {len(found)} texts and {len(labels)} labels")
    if len(found) < 2:
        raise ValueError(f"choices: {len(found)}; allowed: 2 or more")
    if len(set(found)) < len(found):
        raise ValueError("choices: two are the same text")
    return labels, found


def _right(value: Any, labels: tuple[str, ...], choices: tuple[str, ...]) -> int:
    """Index of the right choice: a number is an index, a text a label or a choice."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"answer: {type(value).__name__} in place of an index, a label or a text")
    name = str(value)
    if name in labels:
        return labels.index(name)
    index = int(name) if name.isascii() and name.isdecimal() and int(name) < len(choices) else None
    place = choices.index(name) if isinstance(value, str) and name in choices else None
    if index is not None and place not in (None, index):
        raise ValueError(f"answer: {shown(value)} is the text of one choice and the index of another")
    found = index if place is None else place
    if found is None:
        allowed = ", ".join(labels) if labels else f"0 to {len(choices) - 1}"
        raise ValueError(f"answer: {shown(value)} is none of the choices; allowed: {allowed}, or a choice's text")
    return found
