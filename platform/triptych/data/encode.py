"""Rows to tokens, through the tokenizer's chat template.

A chat is cut where the assistant begins to speak (the template of what came before, with its generation prompt) and
where it ends (its end token, without the newline that follows), and each piece is tokenised by itself: so training sees
exactly the tokens that sampling sees, prompt first, whatever would merge across the border.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from triptych.data.rows import Message, PairRow, PromptRow, SftRow, TextRow
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

    A chat longer than `max_length` tokens is cut on the right (`truncate`), left out (`drop`), or split into rows that
    share one token, so that every token but the first is still predicted, once (`split`).
    """
    items: list[Example] = []
    truncated = dropped = split = unlearnable = 0
    for pieces in _tokenized([_pieces(row.messages, tokenizer) for row in rows], tokenizer):
        ids = [token for piece, _ in pieces for token in piece]
        labels = [token if learned else IGNORE for piece, learned in pieces for token in piece]
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
    rows = list(rows)
    chats = [
        _pieces((*row.prompt, Message("assistant", answer)), tokenizer)
        for row in rows
        for answer in (row.chosen, row.rejected)
    ]
    whole = []
    for pieces in _tokenized(chats, tokenizer):
        ids = [token for piece, _ in pieces for token in piece]
        whole.append((ids, len(ids) - len(pieces[-1][0])))
    items = [
        PairExample(chosen, rejected, start, row.margin)
        for row, (chosen, start), (rejected, _) in zip(rows, whole[::2], whole[1::2], strict=True)
        if max(len(chosen), len(rejected)) <= max_length
    ]
    return Encoded(items, dropped=len(rows) - len(items))


def encode_prompts(
    rows: Iterable[PromptRow], tokenizer: "PreTrainedTokenizerBase", max_length: int, max_bad_rows: int = 0
) -> list[PromptExample]:
    """Prompts with the generation prompt at their end.

    Longer ones are malformed rows: left out, and refused (UserError) where there are more than `max_bad_rows`.
    """
    rows = list(rows)
    texts = [_render(row.messages, tokenizer, generation=True) for row in rows]
    prompts = _ids(texts, tokenizer)
    longer = [number for number, ids in enumerate(prompts, start=1) if len(ids) > max_length]
    if len(longer) > max_bad_rows:
        raise UserError(
            f"data: {len(longer)} of {len(prompts)} prompts are longer than {max_length} tokens "
            f"(max_bad_rows allows {max_bad_rows}); the first are rows {', '.join(map(str, longer[:5]))}"
        )
    kept = [PromptExample(ids, row.fields) for row, ids in zip(rows, prompts, strict=True) if len(ids) <= max_length]
    if not kept:
        raise UserError(f"data: none of {len(prompts)} prompts is within {max_length} tokens")
    return kept


def _split(ids: list[int], labels: list[int], max_length: int) -> list[Example]:
    """Windows of at most `max_length` tokens, each beginning with the last token of the one before."""
    stride = max(max_length - 1, 1)
    starts = range(0, max(len(ids) - 1, 1), stride)
    return [Example(ids[start : start + max_length], labels[start : start + max_length]) for start in starts]


def _pieces(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, bool]]:
    """The chat's text up to the last assistant's end token, in pieces: (text, whether the assistant wrote it)."""
    pieces: list[tuple[str, bool]] = []
    done = ""
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = _render(messages[:index], tokenizer, generation=True)
        after = _render(messages[: index + 1], tokenizer, generation=False)
        if not (before.startswith(done) and after.startswith(before)):
            raise UserError(
                "model.base: its chat template rewrites earlier turns when a later one is added, so the assistant's "
                "tokens cannot be told apart; use a template that only appends"
            )
        done = before + _through_end_token(after[len(before) :], tokenizer)
        pieces += [(before[sum(len(text) for text, _ in pieces) :], False), (done[len(before) :], True)]
    return pieces


def _through_end_token(turn: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The assistant's turn without what the template writes after its last special token."""
    end = max(
        (turn.rfind(token) + len(token) for token in _special(tokenizer) if token in turn),
        default=0,
    )
    if end == 0:
        raise UserError("model.base: its chat template ends the assistant's turn without a special token")
    return turn[:end]


def _special(tokenizer: "PreTrainedTokenizerBase") -> list[str]:
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def _render(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", *, generation: bool) -> str:
    import jinja2

    chat = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=generation))
    except jinja2.TemplateError as error:
        roles = ", ".join(message.role for message in messages)
        raise UserError(f"model.base: its chat template refuses a chat of the turns {roles}: {error}") from error


def _tokenized(
    chats: list[list[tuple[str, bool]]], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[list[tuple[list[int], bool]]]:
    """The pieces of each chat as tokens, all tokenised in one call."""
    ids = iter(_ids([text for chat in chats for text, _ in chat], tokenizer))
    for chat in chats:
        yield [(next(ids), learned) for _, learned in chat]


def _ids(texts: list[str], tokenizer: "PreTrainedTokenizerBase") -> list[list[int]]:
    return tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
