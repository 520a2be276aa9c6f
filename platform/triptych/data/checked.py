"""The check of a row by the base's chat template, before anything is made of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from triptych.data.chat import ChatTemplate, Control
from triptych.data.encode import choice_turns, pair_turns
from triptych.data.rankings import RankingRow, ranked_turns
from triptych.data.rows import (
    ChoiceRow,
    DataRow,
    Message,
    PairRow,
    PromptRow,
    RatedRow,
    SftRow,
    UnpairedRow,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Chat = SftRow | PairRow | PromptRow
Change = Callable[[str, str], str]
"""A function of a text and of its place in the row."""


@dataclass
class ChatCheck:
    """Refuses chats that the template loses a part of, and text that it would read as control tokens, or escapes it."""

    tokenizer: "PreTrainedTokenizerBase"
    control: Control = "refuse"
    found: int = 0
    """Rows whose text holds control tokens, so far."""

    @cached_property
    def template(self) -> ChatTemplate:
        return ChatTemplate(self.tokenizer)

    def __call__(self, row: DataRow) -> DataRow:
        """The row, its control tokens escaped; rows that are no chats stay as they are.

        Raises:
            ValueError: what is wrong with the row.
        """
        if isinstance(row, RatedRow | UnpairedRow):
            return replace(row, chat=cast("SftRow", self._checked(row.chat)))
        return self._checked(row) if isinstance(row, Chat) else row

    def _checked(self, row: Chat) -> Chat:
        """The chat, each of its texts plain, if the template takes it."""
        row = self._plain(row)
        if isinstance(row, SftRow):
            self.template.turns(row.messages, row.tools)
        elif isinstance(row, PairRow):
            chosen, rejected = pair_turns(self.template, row)
            if chosen == rejected:
                raise ValueError("chosen, rejected: the chat template writes both alike, so nothing is preferred")
        elif isinstance(row, ChoiceRow):
            choice_turns(self.template, row)
        elif isinstance(row, RankingRow):
            ranked_turns(self.template, row)
        else:
            self.template.prompt(row.messages, row.tools)
        return row

    def _plain(self, row: Chat) -> Chat:
        held: list[tuple[str, str]] = []

        def change(text: str, place: str) -> str:
            tokens = self.template.controls(text)
            held.extend((place, token) for token in tokens)
            return self.template.escaped(text) if tokens and self.control == "escape" else text

        changed = _with_texts(row, change)
        self.found += bool(held)
        if held and self.control == "refuse":
            raise ValueError(
                f"{held[0][0]}: holds the control token {held[0][1]!r}, which would end or begin a turn; leave it out, "
                "or escape such text (control_tokens: escape)"
            )
        return changed


def _with_texts(row: Chat, change: Change) -> Chat:
    """The row with each of its texts changed, wherever it stands."""
    tools = tuple(_mapped(tool, f"tools[{index}]", change) for index, tool in enumerate(row.tools))
    if isinstance(row, PairRow):
        prompt = _messages(row.prompt, "prompt", change)
        chosen, rejected = change(row.chosen, "chosen"), change(row.rejected, "rejected")
        return replace(row, prompt=prompt, chosen=chosen, rejected=rejected, tools=tools)
    row = replace(row, messages=_messages(row.messages, "messages", change), tools=tools)
    if isinstance(row, ChoiceRow):
        return replace(row, choices=tuple(change(text, f"choices[{i}]") for i, text in enumerate(row.choices)))
    if isinstance(row, RankingRow):
        return replace(row, answers=tuple(change(text, f"answers[{i}]") for i, text in enumerate(row.answers)))
    return row


def _messages(messages: tuple[Message, ...], name: str, change: Change) -> tuple[Message, ...]:
    return tuple(
        replace(
            message,
            content=change(message.content, f"{name}[{index}].content"),
            extra=_mapped(message.extra, f"{name}[{index}]", change),
        )
        for index, message in enumerate(messages)
    )


def _mapped(value: Any, place: str, change: Change) -> Any:
    if isinstance(value, str):
        return change(value, place)
    if isinstance(value, Mapping):
        return {change(key, place): _mapped(item, f"{place}.{key}", change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(item, f"{place}[{index}]", change) for index, item in enumerate(value)]
    return value
