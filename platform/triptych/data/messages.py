"""Parts of a message beside role and content, and a row's tools; each is honoured, or the row is malformed."""

from collections.abc import Mapping
from typing import Any

from triptych.data.cells import DECODER, RepeatedNameError, listed

FLAGS = ("weight", "train", "training", "trainable", "loss")
"""Names under which files say whether an assistant's turn is learned: OpenAI's, and those of common trainers."""
_TEXTS = ("name", "tool_call_id", "reasoning_content", "reasoning", "thinking")
_ALLOWED = ("role", "content", *_TEXTS, "tool_calls", *FLAGS)
_DEEPEST = 64
"""Levels to which objects in calls and tools may be nested: deeper ones outgrow the stack of what walks them."""
_OTHER_COLUMNS = ("functions", "documents", "chat_template_kwargs")
"""Columns that other trainers give to the chat template."""


def is_learned(item: Mapping[str, Any], name: str) -> bool:
    """Whether a message's weight or train flag lets it be learned; ValueError where a flag is neither yes nor no."""
    given = {flag: item[flag] for flag in FLAGS if item.get(flag) is not None}
    for flag, value in given.items():
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise ValueError(f"{name}.{flag}: {value!r}; allowed: 0 or 1, true or false")
        if value and item["role"] != "assistant":
            raise ValueError(f"{name}.{flag}: {value!r} on the {item['role']}'s turn; only the assistant's are learned")
    if len({bool(value) for value in given.values()}) > 1:
        raise ValueError(f"{name}: {' and '.join(given)} contradict each other")
    return all(given.values())


def extra_fields(item: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What the chat template gets of a message beside role and content; ValueError names a field that it would not.

    The arguments of a call that are JSON text become an object, as vLLM's endpoint makes them.
    """
    given = {str(key): value for key, value in item.items() if value is not None}
    unknown = [key for key in given if key not in _ALLOWED]
    if unknown:
        raise ValueError(f"{name}.{unknown[0]}: would be lost; a message may have: {', '.join(_ALLOWED)}")
    for key in _TEXTS:
        if not isinstance(given.get(key, ""), str):
            raise ValueError(f"{name}.{key}: {type(given[key]).__name__} in place of text")
    fields = {key: given[key] for key in _TEXTS if given.get(key)}
    if thought := fields.get("reasoning") or fields.get("reasoning_content"):
        fields |= {"reasoning": thought, "reasoning_content": thought}  # templates read either; vLLM gives both
    if calls := listed(given.get("tool_calls") or [], f"{name}.tool_calls"):
        fields["tool_calls"] = [_call(call, f"{name}.tool_calls[{index}]") for index, call in enumerate(calls)]
    for key, roles in (("tool_calls", ("assistant",)), ("tool_call_id", ("tool",))):
        if key in fields and item["role"] not in roles:
            raise ValueError(f"{name}.{key}: on the {item['role']}'s turn; allowed on the {roles[0]}'s")
    return fields


def tools_of(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """The row's `tools`, which the chat template gets: a list of objects, or JSON text of one; ValueError else."""
    for column in _OTHER_COLUMNS:
        if record.get(column):
            raise ValueError(f"{column}: would be lost; the chat template gets the messages and `tools`")
    tools = _without_null(listed(record.get("tools") or [], "tools"), "tools")
    for index, tool in enumerate(tools):
        if not isinstance(tool, dict) or not tool:
            raise ValueError(f"tools[{index}]: {type(tool).__name__} in place of an object")
    return tuple(tools)


def _call(call: Any, name: str) -> dict[str, Any]:
    """A call in OpenAI's form, its arguments an object."""
    function = _function(call, name)
    if call.get("type") not in (None, "function"):
        raise ValueError(f"{name}.type: {call['type']!r}; allowed: 'function'")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = DECODER.decode(arguments or "{}")
        except RepeatedNameError as error:
            raise ValueError(f"{name}.function.arguments: {error}") from None
        except (ValueError, RecursionError):
            raise ValueError(f"{name}.function.arguments: text that is no JSON") from None
        _without_null(arguments, f"{name}.function.arguments")  # kept as it is, if no deeper than allowed
    elif arguments is not None:
        arguments = _without_null(arguments, f"{name}.function.arguments")
    if not isinstance(arguments or {}, dict):
        raise ValueError(f"{name}.function.arguments: {type(arguments).__name__} in place of an object")
    kept: dict[str, Any] = _without_null({key: value for key, value in call.items() if key != "function"}, name)
    return {"type": "function"} | kept | {"function": {"name": function["name"], "arguments": arguments or {}}}


def _function(call: Any, name: str) -> Mapping[str, Any]:
    """Name and arguments of a call's function, and no more."""
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{name}: not a call of the form {{function: {{name, arguments}}}}")
    lost = [key for key, value in function.items() if key not in ("name", "arguments") and value is not None]
    if lost:
        raise ValueError(f"{name}.function.{lost[0]}: would be lost; a call's function may have: name, arguments")
    return function


def _without_null(value: Any, name: str, level: int = 0) -> Any:
    """The value without null fields of objects: Parquet gives every object the fields of all others.

    Raises:
        ValueError: it is nested too deeply.
    """
    if level > _DEEPEST:
        raise ValueError(f"{name}: nested more than {_DEEPEST} levels deep")
    if isinstance(value, Mapping):
        return {str(key): _without_null(item, name, level + 1) for key, item in value.items() if item is not None}
    return [_without_null(item, name, level + 1) for item in value] if isinstance(value, list) else value
