"""Rows to tokens, through the tokenizer's chat template.

An answer stands behind the tokens of its prompt, as an engine gets them (`turn_tokens`). Answers whose prompts go on
from one another are one example, others one each: training sees exactly the tokens that sampling sees.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from triptych.data.chat import ChatTemplate, Turn
from triptych.data.rows import AnyRow, ChoiceRow, Message, PairRow, PromptRow, SftRow, TextRow
from triptych.data.turn_tokens import TurnTokens
from triptych.errors import UserError
from triptych.objectives import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Example:
    """One chat: `labels[i]` is `input_ids[i]` where the assistant wrote it, else -100. Not shifted."""

    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True, slots=True)
class PairExample:
    """Two whole chats that differ in the last answer, each ending with the assistant's end token."""

    chosen: list[int]
    rejected: list[int]
    start: int
    """Number of tokens of the prompt, after which the answer begins in either chat."""
    margin: float | None


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text with its end token, and the index of its class."""

    input_ids: list[int]
    label: int


@dataclass(frozen=True, slots=True)
class PromptExample:
    """A prompt with the generation prompt at its end, and the other columns of its row."""

    input_ids: list[int]
    fields: Mapping[str, Any]
    messages: Sequence[Mapping[str, Any]] = ()
    """The prompt as the row has it, each message with `role` and `content`."""


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A prompt and the answers to choose from, each ending with the assistant's end token."""

    prompt: list[int]
    choices: list[list[int]]
    characters: list[int]
    """Length of each choice's text."""
    right: int


@dataclass(frozen=True, slots=True)
class Encoded(Generic[T]):
    """Encoded rows, and counts of those that were cut or left out."""

    items: list[T]
    truncated: int = 0
    """Rows cut at the maximum length."""
    dropped: int = 0
    """Rows left out: longer than the maximum length."""
    split: int = 0
    """Rows cut into several."""
    unlearnable: int = 0
    """Rows, and pieces of split ones, left out: nothing to learn in them."""


def encode_sft(
    rows: Iterable[SftRow],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    overlength: Literal["truncate", "split", "drop"] = "truncate",
) -> Encoded[Example]:
    """Encode chats, with labels on the assistant's tokens.

    A chat is one example, or one an answer where its template writes earlier answers otherwise than the last. One
    longer than `max_length` tokens is cut on the right (`truncate`), left out (`drop`), or split into rows that share
    one token, so that every token but the first is still predicted, once (`split`).
    """
    items: list[Example] = []
    truncated = dropped = split = unlearnable = 0
    template = ChatTemplate(tokenizer)
    chats = turns_of_rows(lambda row: template.turns(row.messages, row.tools), rows)
    examples = (example for turns in TurnTokens(tokenizer).of(chats) for example in _examples(turns))
    for ids, labels in examples:
        longer = len(ids) > max_length
        if longer and overlength == "drop":
            dropped += 1
            continue
        cut = (
            _split(ids, labels, max_length)
            if overlength == "split"
            else [Example(ids[:max_length], labels[:max_length])]
        )
        learnable = [example for example in cut if any(label != IGNORE for label in example.labels[1:])]
        unlearnable += len(cut) - len(learnable)
        split += longer and overlength == "split"
        truncated += longer and overlength == "truncate" and bool(learnable)
        items += learnable
    return Encoded(items, truncated, dropped, split, unlearnable)


def encode_texts(
    rows: Iterable[TextRow],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    labels: Sequence[str],
    *,
    drop: bool = False,
) -> Encoded[TextExample]:
    """Encode texts as the tokenizer writes them, each ending with the end token, where its class is read.

    A text longer than `max_length` tokens is left out (`drop`), or cut on the right: the end token stays. Classes are
    indices in `labels`.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise UserError("model.base: its tokenizer has no end token, where the class of a text could be read")
    rows = list(rows)
    items: list[TextExample] = []
    truncated = dropped = 0
    for row, ids in zip(rows, tokenizer([row.text for row in rows])["input_ids"] if rows else [], strict=True):
        whole = ids if ids and ids[-1] == end else [*ids, end]
        longer = len(whole) > max_length
        if longer and drop:
            dropped += 1
            continue
        truncated += longer
        kept = [*whole[: max_length - 1], end] if longer else whole
        items.append(TextExample(kept, labels.index(row.label)))
    return Encoded(items, truncated, dropped)


def encode_pairs(
    rows: Iterable[PairRow], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Encoded[PairExample]:
    """Encode pairs of chats. A pair longer than `max_length` is dropped: a score is read at the end token, the last."""
    rows, template = list(rows), ChatTemplate(tokenizer)
    both = list(TurnTokens(tokenizer).of(turns_of_rows(partial(pair_turns, template), rows)))
    items = [
        PairExample(prompt + chosen, prompt + rejected, len(prompt), row.margin)
        for row, ((prompt, chosen), (_, rejected)) in zip(rows, both, strict=True)
        if len(prompt) + max(len(chosen), len(rejected)) <= max_length
    ]
    return Encoded(items, dropped=len(rows) - len(items))


def encode_prompts(
    rows: Iterable[PromptRow], tokenizer: "PreTrainedTokenizerBase", max_length: int, max_bad_rows: int = 0
) -> list[PromptExample]:
    """Prompts with the generation prompt at their end.

    Longer ones are malformed rows: left out, and refused (UserError) where there are more than `max_bad_rows`.
    """
    rows, template = list(rows), ChatTemplate(tokenizer)
    texts = turns_of_rows(lambda row: template.prompt(row.messages, row.tools), rows)
    prompts = TurnTokens(tokenizer).ids(texts)
    longer = [number for number, ids in enumerate(prompts, start=1) if len(ids) > max_length]
    if len(longer) > max_bad_rows:
        raise UserError(
            f"data: {len(longer)} of {len(prompts)} prompts are longer than {max_length} tokens "
            f"(max_bad_rows allows {max_bad_rows}); the first are rows {', '.join(map(str, longer[:5]))}"
        )
    kept = [
        PromptExample(ids, row.fields, tuple({"role": one.role, "content": one.content} for one in row.messages))
        for row, ids in zip(rows, prompts, strict=True)
        if len(ids) <= max_length
    ]
    if not kept:
        raise UserError(f"data: none of {len(prompts)} prompts is within {max_length} tokens")
    return kept


def encode_choices(
    rows: Iterable[ChoiceRow], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> Encoded[ChoiceExample]:
    """Encode prompts with their choices. A row of which a choice is longer than `max_length` tokens is dropped."""
    rows, template = list(rows), ChatTemplate(tokenizer)
    chats = TurnTokens(tokenizer).of(
        [[turn] for turns in turns_of_rows(partial(choice_turns, template), rows) for turn in turns]
    )
    items = []
    for row in rows:
        turns = [next(chats)[0] for _ in row.choices]
        if max(len(prompt) + len(choice) for prompt, choice in turns) <= max_length:
            texts = [len(text) for text in row.choices]
            items.append(ChoiceExample(turns[0][0], [choice for _, choice in turns], texts, row.right))
    return Encoded(items, dropped=len(rows) - len(items))


def choice_turns(template: ChatTemplate, row: ChoiceRow) -> list[Turn]:
    """The assistant's turn with each choice; ValueError as of `ChatTemplate.turns`, and where two are written alike."""
    asked = [replace(message, learned=False) for message in row.messages]
    turns = [turn for text in row.choices for turn in template.turns((*asked, Message("assistant", text)), row.tools)]
    if len({turn.answer for turn in turns}) < len(turns):
        raise ValueError("choices: the chat template writes two of them alike")
    return turns


def _split(ids: list[int], labels: list[int], max_length: int) -> list[Example]:
    """Windows of at most `max_length` tokens, each beginning with the last token of the one before."""
    stride = max(max_length - 1, 1)
    starts = range(0, max(len(ids) - 1, 1), stride)
    return [Example(ids[start : start + max_length], labels[start : start + max_length]) for start in starts]


def pair_turns(template: ChatTemplate, row: PairRow) -> list[Turn]:
    """The two answers of a pair, the chosen one first; ValueError as of `ChatTemplate.turns`."""
    asked = [replace(message, learned=False) for message in row.prompt]
    return [
        turn
        for answer in (row.chosen, row.rejected)
        for turn in template.turns((*asked, Message("assistant", answer)), row.tools)
    ]


def turns_of_rows(make: Callable[[AnyRow], T], rows: Iterable[AnyRow]) -> list[T]:
    """What is made of each row; UserError names the row (from 1) of which nothing can be made."""
    made = []
    for number, row in enumerate(rows, start=1):
        try:
            made.append(make(row))
        except ValueError as error:
            raise UserError(f"data: row {number}: {error}") from error
    return made


def _examples(turns: Iterable[tuple[list[int], list[int]]]) -> Iterator[tuple[list[int], list[int]]]:
    """(input_ids, labels): a turn whose prompt goes on from what is there extends it, and another begins anew."""
    ids: list[int] = []
    labels: list[int] = []
    for prompt, answer in turns:
        if ids and prompt[: len(ids)] != ids:
            yield ids, labels
            labels = []
        labels = [*labels, *[IGNORE] * (len(prompt) - len(labels)), *answer]
        ids = prompt + answer
    if ids:
        yield ids, labels
