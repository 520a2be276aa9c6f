"""Encoding of rows with labelled tokens for causal models, whose states see only earlier tokens."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from triptych.data.encode import Encoded
from triptych.data.rows import QuestionRow, TaggedRow
from triptych.errors import UserError
from triptych.objectives import IGNORE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Offsets = list[tuple[int, int]]
"""Range of characters of each token: (from, to)."""


@dataclass(frozen=True, slots=True)
class TaggedExample:
    """`tags[i]` is the index of a word's tag where `input_ids[i]` is the word's last token, else -100."""

    input_ids: list[int]
    tags: list[int]


@dataclass(frozen=True, slots=True)
class QuestionExample:
    """An encoded question: context, question, and the context again, where the answer is read."""

    input_ids: list[int]
    context_start: int
    """Index of the first token of the second context, which goes to the end."""
    start: int
    end: int
    """First and last token of the answer, counted from there."""
    context: str
    offsets: list[int]
    """Characters of the context's tokens: from, to, from, to, ..."""
    answers: str
    """All answers, as a JSON list."""


def encode_tags(
    rows: Iterable[TaggedRow],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
    labels: Sequence[str],
    separator: str = " ",
    *,
    drop: bool = False,
) -> Encoded[TaggedExample]:
    """Encode words, each tokenised by itself behind the separator, so that no token belongs to two of them.

    The tag stands at a word's last token: the states before it have not seen the whole word. A longer row is left out
    (`drop`), or cut on the right behind a whole word. A row without a word that fits, or with one of which the
    tokenizer leaves nothing, cannot be learned.
    """
    rows, begin = list(rows), _beginning(tokenizer)
    texts = [f"{separator if place else ''}{word}" for row in rows for place, word in enumerate(row.tokens)]
    pieces = iter(tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else [])
    items: list[TaggedExample] = []
    truncated = dropped = unlearnable = 0
    for row in rows:
        words = [next(pieces) for _ in row.tokens]
        length = len(begin) + sum(map(len, words))
        if length > max_length and drop:
            dropped += 1
            continue
        ids, tags = list(begin), [IGNORE] * len(begin)
        for word, tag in zip(words, row.tags, strict=True):
            if len(ids) + len(word) > max_length:
                break
            ids += word
            tags += [*[IGNORE] * (len(word) - 1), labels.index(tag)]
        if len(ids) == len(begin) or not all(words):
            unlearnable += 1
            continue
        truncated += length > max_length
        items.append(TaggedExample(ids, tags))
    return Encoded(items, truncated, dropped, unlearnable=unlearnable)


def encode_questions(
    rows: Iterable[QuestionRow], tokenizer: "PreTrainedTokenizerBase", max_length: int, *, drop: bool = False
) -> Encoded[QuestionExample]:
    """Encode rows as context, question, context: in the second, each token has seen the question and the whole context,
    which a causal model otherwise never has (Springer et al. 2024, arXiv 2402.15449); the first context is a beginning
    that its questions share, and is computed once for them.

    A longer row is left out (`drop`), or its context is cut on the right; a row whose answers are cut off cannot be
    learned. Of several answers the first that is left is learned.
    """
    if not tokenizer.is_fast:
        raise UserError("model.base: its tokenizer does not tell which characters a token stands for; use a fast one")
    rows, begin = list(rows), _beginning(tokenizer)
    if not rows:
        return Encoded([])
    contexts = tokenizer([row.context for row in rows], add_special_tokens=False, return_offsets_mapping=True)
    questions = tokenizer([f"\n\n{row.question}\n\n" for row in rows], add_special_tokens=False)["input_ids"]
    items: list[QuestionExample] = []
    truncated = dropped = unlearnable = 0
    for row, ids, offsets, question in zip(
        rows, contexts["input_ids"], contexts["offset_mapping"], questions, strict=True
    ):
        room = (max_length - len(begin) - len(question)) // 2
        if len(ids) > room and drop:
            dropped += 1
            continue
        kept = ids[: max(room, 0)]
        span = _first_span(row, offsets[: len(kept)])
        if span is None:
            unlearnable += 1
            continue
        truncated += len(ids) > room
        before = [*begin, *kept, *question]
        flat = [place for pair in offsets[: len(kept)] for place in pair]
        answers = json.dumps(row.answers, ensure_ascii=False)
        items.append(QuestionExample([*before, *kept], len(before), *span, row.context, flat, answers))
    return Encoded(items, truncated, dropped, unlearnable=unlearnable)


def _first_span(row: QuestionRow, offsets: Offsets) -> tuple[int, int] | None:
    """First and last token of the first answer that these tokens hold; None: they hold none."""
    for text, start in zip(row.answers, row.starts, strict=True):
        first, last = start + len(text) - len(text.lstrip()), start + len(text.rstrip()) - 1
        inside = [place for place, (low, high) in enumerate(offsets) if low <= last and high > first]
        if inside and offsets[inside[-1]][1] > last:
            return inside[0], inside[-1]
    return None


def _beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The tokens that the tokenizer puts before any text."""
    return [token for token in tokenizer("")["input_ids"] if token != tokenizer.eos_token_id]
