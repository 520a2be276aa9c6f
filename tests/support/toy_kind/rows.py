"""Rows of the kind: plain texts, parsed and encoded."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from triptych.data.encode import Encoded
from triptych.data.examples import TOKENS, Examples
from triptych.recipe import SupervisedStage


@dataclass(frozen=True, slots=True)
class PlainText:
    """A text to learn whole."""

    text: str


@dataclass(frozen=True, slots=True)
class PlainExample:
    """Tokens of a text, the end token last."""

    input_ids: list[int]


def texts(stage: SupervisedStage) -> Examples:
    """Texts as tokens."""
    encode = partial(encode_plain, max_length=stage.train.batch.max_length)
    return Examples("plain texts", parse_plain, encode, pa.schema({"input_ids": TOKENS}))


def parse_plain(record: dict[str, Any]) -> list[Any]:
    """The row of a record. ValueError: it has no text."""
    if not isinstance(record.get("text"), str):
        raise ValueError("text: missing; allowed: a text")
    return [PlainText(record["text"])]


def encode_plain(
    rows: Iterable[PlainText], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> Encoded[PlainExample]:
    """Texts as tokens, cut on the right."""
    encoded = [[*tokenizer(row.text)["input_ids"], tokenizer.eos_token_id] for row in rows]
    return Encoded([PlainExample(ids[:max_length]) for ids in encoded], sum(len(ids) > max_length for ids in encoded))
