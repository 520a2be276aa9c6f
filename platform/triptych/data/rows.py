"""One row of data: a chat, a preference pair or a prompt; parsed from a plain record, or refused with a reason."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

from triptych.data.cells import finite as _finite
from triptych.data.cells import from_json, shown, texts
from triptych.data.cells import listed as _list
from triptych.data.cells import text as _text
from triptych.data.class_names import ClassIndex
from triptych.data.messages import extra_fields, is_learned, tools_of
from triptych.data.proposals import proposal
from triptych.data.ratings import Rating, is_rated_bad, scored
from triptych.data.shapes import shaped

RowKind = Literal[
    "sft",
    "pairs",
    "pairs_with_margin",
    "prompts",
    "texts",
    "tags",
    "questions",
    "choices",
    "answers",
    "unpaired",
    "rankings",
]

ROLES = ("system", "user", "assistant", "tool")
RANKED = 256
"""Most answers of a ranking: every two of them may be a pair."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat."""

    role: str
    content: str
    learned: bool = True
    """False: a turn of the assistant that is read, and not imitated."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """Further fields that the chat template gets, such as `tool_calls`."""


@dataclass(frozen=True, slots=True)
class SftRow:
    """A chat to imitate; at least one turn is the assistant's."""

    messages: tuple[Message, ...]
    tools: Sequence[Mapping[str, Any]] = ()
    """Functions that the assistant may call, in OpenAI's form."""


@dataclass(frozen=True, slots=True)
class PairRow:
    """Two answers to one prompt, the first preferred; `margin` says by how much, where it is known."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    margin: float | None
    tools: Sequence[Mapping[str, Any]] = ()
    """As in `SftRow`."""


@dataclass(frozen=True, slots=True)
class RatedRow:
    """One answer and what is thought of it; `rated.paired` makes pairs of those to the same prompt."""

    chat: SftRow
    """The prompt, and the answer as its last turn."""
    rating: Rating


@dataclass(frozen=True, slots=True)
class UnpairedRow:
    """One answer, and whether it is desirable."""

    chat: SftRow
    """The prompt, and the answer as its last turn."""
    desirable: bool


@dataclass(frozen=True, slots=True)
class PromptRow:
    """A chat that waits for the assistant's turn."""

    messages: tuple[Message, ...]
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The record's other columns, which rewards may read. They are no part of a source's digest."""
    tools: Sequence[Mapping[str, Any]] = ()
    """As in `SftRow`."""


@dataclass(frozen=True, slots=True)
class ChoiceRow(PromptRow):
    """A prompt, the answers to choose from, and which of them is right."""

    choices: tuple[str, ...] = ()
    right: int = 0


@dataclass(frozen=True, slots=True)
class AnsweredRow(PromptRow):
    """A prompt and the answers to it that are right."""

    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextRow:
    """A text and the name of its class."""

    text: str
    label: str


@dataclass(frozen=True, slots=True)
class TaggedRow:
    """The words of a text, and the tag of each."""

    tokens: tuple[str, ...]
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A question, and the spans of a context that answer it: their texts, and the characters where they start."""

    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


DataRow = SftRow | PairRow | RatedRow | UnpairedRow | PromptRow | TextRow | TaggedRow | QuestionRow
AnyRow = TypeVar("AnyRow", bound=DataRow)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A malformed row: its line in the file (row number in a Parquet file or a hub's data set), counted from 1."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class SourceRows(Generic[AnyRow]):
    """The rows that a source gave."""

    items: list[AnyRow]
    digest: str
    """sha256 of the used rows in order, whatever file format they came in."""
    bad: list[BadRow] = field(default_factory=list)


def parse_sft(record: Mapping[str, Any]) -> SftRow:
    """Parse a chat from `{messages}`, `{prompt, response}` or another shape of chats; ValueError says what is wrong."""
    record = shaped(record, "sft")
    if record.get("messages") is not None:
        messages = _messages(record["messages"], "messages")
        answers = [message for message in messages if message.role == "assistant"]
        if not any(message.learned for message in answers):
            why = "every turn of the assistant has weight 0" if answers else "no turn is the assistant's"
            raise ValueError(f"messages: {why}, so nothing could be learned")
        return SftRow(messages, tools_of(record))
    _require(record, "prompt", "response", instead="'messages'")
    answer = Message("assistant", _text(record["response"], "response"))
    return SftRow((*_prompt(record["prompt"], "prompt"), answer), tools_of(record))


def parse_chats(record: Mapping[str, Any]) -> list[SftRow]:
    """Parse a chat as `parse_sft` does; none comes of a row whose `label` says that its answer is a bad one."""
    return [] if is_rated_bad(record) else [parse_sft(record)]


def parse_pair(record: Mapping[str, Any]) -> PairRow:
    """Parse a pair from `{prompt, chosen, rejected, margin?}` or a shape like it; ValueError says what is wrong."""
    return _chosen_and_rejected(shaped(record, "pairs"))


def parse_preferences(record: Mapping[str, Any]) -> list[PairRow] | list[RatedRow]:
    """Parse pairs as `parse_pairs` does, or one answer with its rating, as of `{prompt, response, score}`.

    The pairs of a rated answer are with other rows' answers.
    """
    shape = shaped(record, "pairs")
    return [_rated(shape)] if isinstance(shape.get("rated"), Rating) else _pairs(shape)


def parse_pairs(record: Mapping[str, Any]) -> list[PairRow]:
    """Parse pairs from `{prompt, answers, scores}`, `{prompt, chosen, rejected, margin?}` or another shape of pairs.

    ValueError says what is wrong.

    Of ranked answers, every two whose scores differ are a pair: all that the ranking says (Ouyang et al. 2022,
    arXiv 2203.02155, section 3.5). Their `margin` is the difference of the scores.
    """
    return _pairs(shaped(record, "pairs"))


def _pairs(record: Mapping[str, Any]) -> list[PairRow]:
    return _ranked(record) if record.get("answers") else [_chosen_and_rejected(record)]


def parse_pairs_with_margin(record: Mapping[str, Any]) -> list[PairRow] | list[RatedRow]:
    """Parse rows as `parse_preferences` does; one without a margin, or with a margin below 0, is malformed."""
    pairs = parse_preferences(record)
    for pair in pairs:
        if isinstance(pair, RatedRow):
            if not pair.rating.measured:
                raise ValueError("label: says good or bad and not by how much, which the stage asks for (margin: true)")
        elif pair.margin is None:
            raise ValueError("no 'margin', which the stage asks for (margin: true)")
        elif pair.margin < 0:
            raise ValueError(f"margin: {pair.margin:g} says that the rejected answer is the better one")
    return pairs


def parse_prompt(record: Mapping[str, Any]) -> PromptRow:
    """Parse a prompt from `{messages}`, `{prompt}` or another shape of prompts; ValueError says what is wrong.

    All other columns are kept.
    """
    record = shaped(record, "prompts")
    column = "prompt" if record.get("messages") is None else "messages"
    _require(record, column, instead="'messages'")
    fields = {str(name): value for name, value in record.items() if name not in (column, "messages")}
    return PromptRow(_prompt(record[column], column), fields, tools_of(record))


def parse_text(record: Mapping[str, Any], labels: Sequence[str] | None = None) -> TextRow:
    """Parse a text from `{text, label}`; ValueError says what is wrong.

    A label is the name of a class or, where no class is named so, its index in `labels`; None: any name is allowed.
    """
    record = shaped(record, "texts")
    _require(record, "text", "label")
    return TextRow(_text(record["text"], "text"), _label(record["label"], labels))


def parse_tags(record: Mapping[str, Any], labels: Sequence[str] | None = None) -> TaggedRow:
    """Parse tagged words from `{tokens, tags}`, equally long lists, tags as labels of `parse_text`; else ValueError."""
    _require(record, "tokens", "tags")
    tokens, tags = _list(record["tokens"], "tokens"), _list(record["tags"], "tags")
    if len(tokens) != len(tags):
        raise ValueError(f"{len(tokens)} tokens and {len(tags)} tags")
    if not tokens:
        raise ValueError("tokens: an empty list")
    known = labels is not None and all(isinstance(tag, str) and tag in labels for tag in tags)
    return TaggedRow(
        texts(tokens, "tokens"),
        tuple(tags) if known else tuple(_label(tag, labels, f"tags[{i}]") for i, tag in enumerate(tags)),
    )


def parse_question(record: Mapping[str, Any]) -> QuestionRow:
    """Parse a question from SQuAD's form `{question, context, answers: {text, answer_start}}`; else ValueError.

    A question without an answer is malformed: a head that can only point at a span cannot say that there is none.
    """
    _require(record, "question", "context", "answers")
    question, context = _text(record["question"], "question"), _text(record["context"], "context")
    texts, starts = _answers(record["answers"])
    for number, (text, start) in enumerate(zip(texts, starts, strict=True)):
        if context[start : start + len(text)] != text:
            raise ValueError(f"answers.text[{number}]: {shown(text)} does not stand at {start} of the context")
    return QuestionRow(question, context, texts, starts)


def _require(record: Mapping[str, Any], *names: str, instead: str | None = None) -> None:
    missing = [name for name in names if record.get(name) is None]
    if missing:
        alternative = f" (or {instead} in place of them)" if instead else ""
        has = sorted(map(str, record))
        raise ValueError(
            f"no {' and no '.join(map(repr, missing))}{alternative}; the row has: {', '.join(has) or 'nothing'}"
            + proposal(tuple(missing), tuple(name for name in has if name not in names))
        )


def _prompt(value: Any, name: str) -> tuple[Message, ...]:
    """Turns of a prompt: a string is the user's only turn; a list is a chat that ends before the assistant's turn."""
    if isinstance(value, str) and name == "prompt":
        return (Message("user", _text(value, name)),)
    if not isinstance(value, str | list):
        raise ValueError(f"{name}: {type(value).__name__} in place of text or a list of messages")
    messages = _messages(value, name)
    if messages[-1].role not in ("user", "tool"):
        raise ValueError(f"{name}: the last turn is the {messages[-1].role}'s, not the user's")
    return messages


def _messages(value: Any, name: str) -> tuple[Message, ...]:
    if isinstance(value, str):  # a CSV cell
        value = from_json(value, name, "a list of messages")
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name}: not a list of messages, or an empty one")
    return tuple(_message(item, f"{name}[{index}]", index) for index, item in enumerate(value))


def _message(item: Any, name: str, index: int) -> Message:
    if not isinstance(item, Mapping) or not ("role" in item and ("content" in item or item.get("tool_calls"))):
        raise ValueError(f"{name}: not a message with 'role' and 'content'")
    if item["role"] not in ROLES:
        raise ValueError(f"{name}.role: {shown(item['role'])} is none of {', '.join(ROLES)}")
    if item["role"] == "system" and index > 0:
        raise ValueError(f"{name}.role: a system message can only come first")
    extra = extra_fields(item, name)
    learned, content = is_learned(item, name), item.get("content")
    if not content and (extra.get("tool_calls") or (item["role"] == "tool" and content == "")):
        return Message(item["role"], "", learned, extra)
    return Message(item["role"], _text(content, f"{name}.content"), learned, extra)


def _label(value: Any, labels: Sequence[str] | None, field: str = "label") -> str:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"{field}: {type(value).__name__} in place of a name or an index")
    if isinstance(value, ClassIndex) and (known := value.label(labels, field)) is not None:
        return known
    name = _text(str(value), field)
    if labels is None or name in labels:
        return name
    if name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < len(labels):
        return labels[int(name)]
    raise ValueError(f"{field}: {shown(name)} is none of {', '.join(labels)}, nor an index below {len(labels)}")


def _answers(value: Any) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Texts of a question's answers, and the character where each starts."""
    if isinstance(value, str):  # a CSV cell
        value = from_json(value, "answers", "a mapping")
    if not isinstance(value, Mapping) or not {"text", "answer_start"} <= value.keys():
        raise ValueError("answers: not a mapping with 'text' and 'answer_start'")
    texts, starts = (_list(value[name], f"answers.{name}") for name in ("text", "answer_start"))
    if len(texts) != len(starts):
        raise ValueError(f"answers: {len(texts)} texts and {len(starts)} starts")
    if not texts:
        raise ValueError("answers: none, and unanswerable questions are not learned; leave them out")
    for number, start in enumerate(starts):
        if isinstance(start, bool) or not isinstance(start, int) or start < 0:
            raise ValueError(f"answers.answer_start[{number}]: {shown(start)} is not a whole number from 0")
    return tuple(_text(text, f"answers.text[{number}]") for number, text in enumerate(texts)), tuple(starts)


def _chosen_and_rejected(record: Mapping[str, Any]) -> PairRow:
    _require(record, "prompt", "chosen", "rejected", instead="'answers' and 'scores'")
    margin = record.get("margin")
    known = None if margin is None or margin == "" else _finite(margin, "margin")
    prompt = _prompt(record["prompt"], "prompt")
    return _pair(prompt, record["chosen"], record["rejected"], known, tools_of(record))


def _rated(record: Mapping[str, Any]) -> RatedRow:
    chat = SftRow(_messages(record["messages"], "messages"), tools_of(record))
    if len(chat.messages) < 2 or chat.messages[-1].role != "assistant":
        raise ValueError("messages: the last turn is not the assistant's answer to a prompt, which the rating is of")
    if chat.messages[-1].extra:
        lost = next(iter(chat.messages[-1].extra))
        raise ValueError(f"messages: {lost} of its answer would be lost; an answer of a pair is text alone")
    return RatedRow(chat, record["rated"])


def _ranked(record: Mapping[str, Any]) -> list[PairRow]:
    _require(record, "prompt", *(("scores",) if record.get("ranks") is None else ()))
    prompt = _prompt(record["prompt"], "prompt")
    if len(ranked := scored(record)) > RANKED:
        raise ValueError(f"answers: {len(ranked)} make too many pairs; allowed: {RANKED}")
    measured = record.get("scores") is not None
    pairs = [
        _pair(prompt, better, worse, _finite(high - low, "scores") if measured else None, tools_of(record))
        for (high, better), (low, worse) in itertools.combinations(ranked, 2)
        if high > low
    ]
    if not pairs:
        raise ValueError("scores: no two differ, so there is nothing to prefer")
    return pairs


def _pair(
    prompt: tuple[Message, ...], chosen: Any, rejected: Any, margin: float | None, tools: Sequence[Mapping[str, Any]]
) -> PairRow:
    pair = PairRow(prompt, _text(chosen, "chosen"), _text(rejected, "rejected"), margin, tools)
    if pair.chosen == pair.rejected:
        raise ValueError("chosen and rejected are the same text")
    return pair
