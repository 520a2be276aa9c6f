"""Rows of one answer that is desirable or not, as KTO learns from: labelled ones, and both sides of pairs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from triptych.data.cells import shown
from triptych.data.chat import ChatTemplate, Turn
from triptych.data.encode import Encoded, turns_of_rows
from triptych.data.ratings import RATINGS, Rating
from triptych.data.rows import Message, PairRow, RatedRow, SftRow, UnpairedRow, parse_preferences
from triptych.data.shapes import shaped
from triptych.data.turn_tokens import TurnTokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class UnpairedExample:
    """A whole chat that ends with the assistant's end token, and whether its last answer is desirable."""

    input_ids: list[int]
    start: int
    """Number of tokens of the prompt, after which the answer begins."""
    desirable: bool


def parse_unpaired(record: Mapping[str, Any]) -> list[UnpairedRow]:
    """Parse `{prompt, completion, label}` or a shape like it; a pair is two rows, the chosen answer desirable.

    Raises:
        ValueError: what is wrong; scores and rankings say which answer is better, and not which is good.
    """
    shape = shaped(record, "unpaired")
    rated = shape.get("rated")
    if shape.get("answers") or (isinstance(rated, Rating) and rated.measured):
        column = next((name for name in ("answers", *RATINGS) if record.get(name) is not None), "answers")
        raise ValueError(f"{column}: says how good, and not good or bad; allowed: a `label` that is true or false")
    if rated is None and not (shape.get("chosen") or shape.get("rejected")):
        raise ValueError(_unlabelled(record))
    return [row for found in parse_preferences(record) for row in _unpaired(found)]


def _unlabelled(record: Mapping[str, Any]) -> str:
    if record.get("label") is not None:
        return f"label: {shown(record['label'])} is neither true nor false"
    return f"no 'label' (or 'chosen' and 'rejected'); the row has: {', '.join(sorted(map(str, record))) or 'nothing'}"


def _unpaired(row: PairRow | RatedRow) -> list[UnpairedRow]:
    if isinstance(row, RatedRow):
        return [UnpairedRow(row.chat, row.rating.score > 0)]
    sides = ((row.chosen, True), (row.rejected, False))
    return [
        UnpairedRow(SftRow((*row.prompt, Message("assistant", text)), row.tools), desirable)
        for text, desirable in sides
    ]


def encode_unpaired(
    rows: Iterable[UnpairedRow], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Encoded[UnpairedExample]:
    """Encode answers behind their prompts. A row longer than `max_length` is dropped: it was judged as a whole."""
    rows, template = list(rows), ChatTemplate(tokenizer)
    chats = TurnTokens(tokenizer).of(turns_of_rows(lambda row: [last_turn(template, row.chat)], rows))
    items = [
        UnpairedExample(prompt + answer, len(prompt), row.desirable)
        for row, [(prompt, answer)] in zip(rows, chats, strict=True)
        if len(prompt) + len(answer) <= max_length
    ]
    return Encoded(items, dropped=len(rows) - len(items))


def last_turn(template: ChatTemplate, chat: SftRow) -> Turn:
    """The assistant's last turn; ValueError as of `ChatTemplate.turns`."""
    *asked, answer = chat.messages
    [turn] = template.turns((*(replace(message, learned=False) for message in asked), answer), chat.tools)
    return turn
