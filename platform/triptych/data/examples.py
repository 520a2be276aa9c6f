"""How the rows of each supervised kind become tokens, and the columns that a table keeps of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from triptych.data.encode import Encoded, encode_pairs, encode_sft, encode_texts
from triptych.data.labelled import encode_questions, encode_tags
from triptych.data.rankings import apart, encode_rankings, parse_ranking
from triptych.data.rows import RowKind
from triptych.data.sources import PARSERS, Parse, parser_of
from triptych.data.unpaired import encode_unpaired

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from triptych.recipe.kinds import Classification, QuestionAnswering, Reward, Sft, TokenClassification
    from triptych.recipe.preference import Dpo, Kto, Rrhf

TOKENS = pa.list_(pa.int32())
POSITIONS = ("context_start", "start", "end")
"""Columns of a question: the token where its second context starts, and the answer's first and last, from there."""


@dataclass(frozen=True)
class Examples:
    """How the rows of a stage become tokens. Picklable: Ray's tasks and workers get the same."""

    kind: str
    """What a message calls the rows."""
    parse: Parse
    encode: Callable[[Sequence[Any], "PreTrainedTokenizerBase"], Encoded[Any]]
    schema: pa.Schema
    """Columns of the table: attributes of what `encode` gives."""
    sequences: tuple[str, ...] = ("input_ids",)
    """The columns that hold the tokens of a row."""
    lengths: str | None = None
    """The column with the lengths of a row's sequences, where all lie in one column, one behind the other."""
    answers: bool = False
    """True if the sequences of a row are answers behind a prompt, whose tokens `start` counts."""

    def sequences_of(self, value: Callable[[str], Any]) -> list[list[int]]:
        """The sequences of a row; `value` gives the row's value in a column."""
        found = [value(name) for name in self.sequences]
        return found if self.lengths is None else apart(found[0], value(self.lengths))


def chats(stage: "Sft") -> Examples:
    """Chats as tokens with labels."""
    batch = stage.train.batch
    encode = partial(encode_sft, max_length=batch.max_length, overlength=batch.overlength)
    return Examples("sft", PARSERS["sft"], encode, pa.schema({"input_ids": TOKENS, "labels": TOKENS}))


def pairs(stage: "Reward") -> Examples:
    """Pairs as tokens, with their margins where the stage asks for them."""
    kind: RowKind = "pairs_with_margin" if stage.margin else "pairs"
    columns = {"chosen": TOKENS, "rejected": TOKENS, "start": pa.int32()}
    schema = pa.schema(columns | ({"margin": pa.float32()} if stage.margin else {}))
    encode = partial(encode_pairs, max_length=stage.train.batch.max_length)
    return Examples(kind, PARSERS[kind], encode, schema, ("chosen", "rejected"), answers=True)


def answer_pairs(stage: "Dpo") -> Examples:
    """Pairs as tokens, and where their answers start."""
    schema = pa.schema({"chosen": TOKENS, "rejected": TOKENS, "start": pa.int32()})
    encode = partial(encode_pairs, max_length=stage.train.batch.max_length)
    return Examples("pairs", PARSERS["pairs"], encode, schema, ("chosen", "rejected"), answers=True)


def unpaired(stage: "Kto") -> Examples:
    """Answers as tokens, where they start, and whether they are desirable."""
    schema = pa.schema({"input_ids": TOKENS, "start": pa.int32(), "desirable": pa.bool_()})
    encode = partial(encode_unpaired, max_length=stage.train.batch.max_length)
    return Examples("unpaired", PARSERS["unpaired"], encode, schema, answers=True)


def rankings(stage: "Rrhf") -> Examples:
    """The answers to each prompt as tokens, with their scores."""
    columns = {"input_ids": TOKENS, "lengths": TOKENS, "start": pa.int32(), "scores": pa.list_(pa.float64())}
    parse = partial(_one_ranking, most=stage.max_answers)
    encode = partial(encode_rankings, max_length=stage.train.batch.max_length)
    return Examples("rankings", parse, encode, pa.schema(columns), lengths="lengths", answers=True)


def _one_ranking(record: dict[str, Any], most: int) -> list[Any]:
    return [parse_ranking(record, most)]


def texts(stage: "Classification") -> Examples:
    """Texts as tokens, with the index of their class."""
    batch = stage.train.batch
    drop = batch.overlength == "drop"
    encode = partial(encode_texts, max_length=batch.max_length, labels=stage.labels, drop=drop)
    schema = pa.schema({"input_ids": TOKENS, "label": pa.int32()})
    return Examples("texts", parser_of("texts", stage.labels), encode, schema)


def words(stage: "TokenClassification") -> Examples:
    """Words as tokens, with the index of each word's tag."""
    batch = stage.train.batch
    encode = partial(
        encode_tags,
        max_length=batch.max_length,
        labels=stage.labels,
        separator=stage.separator,
        drop=batch.overlength == "drop",
    )
    schema = pa.schema({"input_ids": TOKENS, "tags": TOKENS})
    return Examples("tags", parser_of("tags", stage.labels), encode, schema)


def questions(stage: "QuestionAnswering") -> Examples:
    """Questions as tokens, with the tokens where the answer starts and ends, and what its text is judged by."""
    batch = stage.train.batch
    encode = partial(encode_questions, max_length=batch.max_length, drop=batch.overlength == "drop")
    columns = {"input_ids": TOKENS} | {name: pa.int32() for name in POSITIONS}
    judged = {"context": pa.string(), "offsets": TOKENS, "answers": pa.string()}
    return Examples("questions", PARSERS["questions"], encode, pa.schema(columns | judged))
