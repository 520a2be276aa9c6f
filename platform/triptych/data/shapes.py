"""Shapes that rows have in files, and how each becomes the shape that our parsers read.

A shape is told by the names of a row's columns alone. Our own names come first; a row that two of the other shapes fit
is refused, and `columns` of the source says which columns are meant.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from triptych.data.cells import shown, text
from triptych.data.dialogues import Turns, dialogue, messages_in, spoken, turns
from triptych.data.ratings import (
    RANKINGS,
    RATINGS,
    answers_and_scores,
    best_answer,
    ranking_columns,
    rating,
    rating_column,
)

SourceRecord = Mapping[str, Any]
Columns = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RowShape:
    """One shape, told by the columns that it needs."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[SourceRecord], dict[str, Any]]
    """A record of the shape -> our columns; a ValueError says what is wrong."""
    uses: tuple[str, ...] = ()
    """Columns that it reads where they are there."""
    ours: bool = False
    last: bool = False
    """True if it is taken where no other fits."""
    fits: Callable[[SourceRecord], bool] = lambda record: True
    """Whether a record that has the columns is of the shape."""

    @property
    def why(self) -> str:
        """The columns that tell the shape."""
        return "columns " + ", ".join(self.needs) if len(self.needs) > 1 else f"column {self.needs[0]}"


def shape_of(record: SourceRecord, kind: str) -> RowShape | None:
    """The shape of a record as rows of `kind`; None: of none that is known. ValueError: it could be two."""
    found = [shape for shape in SHAPES.get(kind, ()) if _has(record, shape.needs) and shape.fits(record)]
    first = [shape for shape in found if shape.ours] or [shape for shape in found if not shape.last] or found
    if len(first) > 1 and not first[0].ours:
        names = " or ".join(f"{shape.name} ({', '.join(shape.needs)})" for shape in first)
        raise ValueError(f"the row could be {names}; say in `columns` which columns are meant")
    return first[0] if first else None


def shaped(record: SourceRecord, kind: str) -> SourceRecord:
    """The record with our names of columns; without a known shape the record itself.

    Raises:
        ValueError: it could be of two shapes, is none of the one that it has, or weighs otherwise than other rows.
    """
    if kind != "prompts" and not _weighs_one(record.get("weight")):
        raise ValueError(
            f"weight: {shown(record['weight'])} of a whole row would be lost; leave out the row or the column, or give "
            "messages a weight of 0 or 1"
        )
    shape = shape_of(record, kind)
    if shape is None:
        return record
    rest = {name: value for name, value in record.items() if name not in (*shape.needs, *shape.uses)}
    return rest | shape.read(record)


def _weighs_one(weight: Any) -> bool:
    """Whether a row's weight, if that is what the column holds, is that of a row without one."""
    try:
        return weight in (None, "") or float(weight) == 1
    except OverflowError:
        return False
    except (TypeError, ValueError):
        return True  # a text, as of the weight of a parcel


def unread_columns(record: SourceRecord, shape: RowShape) -> list[str]:
    """The columns that hold something and are no part of the shape."""
    read = {*shape.needs, *shape.uses, "tools", "margin"} | ({"label"} if rating_column(record) == "label" else set())
    return [name for name, value in record.items() if name not in read and value not in (None, "", [])]


def _has(record: SourceRecord, names: tuple[str, ...]) -> bool:
    return all(record.get(name) is not None for name in names)


def _kept(*names: str) -> Callable[[SourceRecord], dict[str, Any]]:
    return lambda record: {name: record[name] for name in names}


def _chat(column: str) -> Callable[[SourceRecord], dict[str, Any]]:
    """A reader of one column that holds a whole chat."""

    def read(record: SourceRecord) -> dict[str, Any]:
        value = record[column]
        found = dialogue(value) if isinstance(value, str) else None
        return {"messages": _with_system(record, turns(value, column) if found is None else found)}

    return read


def _asked(record: SourceRecord, column: str, more: Columns = ()) -> Turns:
    """The turns before an answer: a system message, earlier questions and answers, and the question."""
    value = record[column]
    for name in more:
        added = record.get(name)
        if added in (None, ""):
            continue
        if not (isinstance(value, str) and isinstance(added, str)):
            raise ValueError(
                f"{name}: {type(added).__name__} behind {type(value).__name__}; both must be text, "
                "or name `prompt` and what answers it in `columns`, and it is left out"
            )
        value = f"{value}\n\n{added}" if added.strip() else value
    asked = spoken(value, column)
    if len(asked) > 1 and _role(asked[-1]) == "assistant" and asked[-1].get("content") == "":
        asked = asked[:-1]  # a dialogue's `Assistant:`, who is still to speak
    return _with_system(record, [*_history(record.get("history")), *asked])


def _history(value: Any) -> Turns:
    """Earlier turns as LLaMA-Factory's alpaca files have them: pairs of question and answer."""
    if value in (None, "", []):
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise ValueError("history: not a list of pairs of question and answer")
    return [
        {"role": role, "content": said}
        for pair in value
        for role, said in zip(("user", "assistant"), pair, strict=True)
    ]


def _with_system(record: SourceRecord, chat: Turns) -> Turns:
    """The chat behind the system message that a column of its own gives."""
    for name in SYSTEM:
        said = record.get(name)
        if said is None or said == "":
            continue
        if not isinstance(said, str):
            raise ValueError(f"{name}: {type(said).__name__} in place of text")
        if chat and _role(chat[0]) == "system":
            if chat[0].get("content") != said:
                raise ValueError(f"{name}: the chat has another system message of its own")
        elif said.strip():
            chat = [{"role": "system", "content": said}, *chat]
    return chat


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, Mapping) else None


def _answered(question: str, answer: str, more: Columns = ()) -> Callable[[SourceRecord], dict[str, Any]]:
    """A reader of columns that hold a question and its answer."""

    def read(record: SourceRecord) -> dict[str, Any]:
        asked = _asked(record, question, more)
        if _role(asked[-1]) == "assistant":
            raise ValueError(f"{question}: the last turn is the assistant's, not the user's")
        said = record[question]
        plain = isinstance(said, str) and not (dialogue(said) or messages_in(said))
        return {"messages": [*asked, *_answer(record[answer], answer, plain=plain)]}

    return read


def _answer(value: Any, name: str, *, plain: bool = False) -> Turns:
    """The assistant's turn, or the turns of a list; `plain`: a text is the answer even where it is the JSON of one."""
    if isinstance(value, list | Mapping):
        return turns([value] if isinstance(value, Mapping) else value, name)
    found = None
    if isinstance(value, str):
        found = dialogue(value) or (None if plain else messages_in(value))
    return found or [{"role": "assistant", "content": text(value, name)}]


def _question(column: str, more: Columns = ()) -> Callable[[SourceRecord], dict[str, Any]]:
    """A reader of a prompt."""
    return lambda record: {"messages": _asked(record, column, more)}


def _preferred(record: SourceRecord) -> dict[str, Any]:
    """The chosen chat of a preference."""
    return {"messages": _with_system(record, _answer(record["chosen"], "chosen"))}


def _shared(record: SourceRecord) -> dict[str, Any]:
    """The turns that both chats of a preference begin with."""
    return {"messages": _preference(record)["prompt"]}


def _preference(record: SourceRecord, column: str | None = None, more: Columns = ()) -> dict[str, Any]:
    """A prompt and two answers; the chats may be whole, with the prompt in both, or the prompt may be a column."""
    asked = _asked(record, column, more) if column else None
    chosen, rejected = (_answer(record[name], name) for name in _SIDES)
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if _role(side[-1]) != "assistant":
            raise ValueError(f"{name}: the last turn is the {_role(side[-1])}'s, not the assistant's")
    before = _common(chosen, rejected)
    if asked is None:
        if not before:
            raise ValueError("no 'prompt', and chosen and rejected are single answers; name its column in `columns`")
        asked = _with_system(record, before)
    elif before:
        asked = _merged(asked, before)
    return {"prompt": asked, "chosen": _said(chosen[-1], "chosen"), "rejected": _said(rejected[-1], "rejected")}


def _said(message: Mapping[str, Any], name: str) -> Any:
    """The text of an answer's message, which must be all that it says."""
    lost = [key for key, value in message.items() if key not in ("role", "content") and value not in (None, "", [])]
    if lost:
        raise ValueError(f"{name}: {lost[0]} of its answer would be lost; an answer of a pair is text alone")
    return message.get("content")


def _common(chosen: Turns, rejected: Turns) -> Turns:
    """What both chats say before their last turns, which must be the same."""
    before, other = chosen[:-1], rejected[:-1]
    if before != other:
        places = range(max(len(before), len(other)))
        place = next(index for index in places if before[index : index + 1] != other[index : index + 1])
        raise ValueError(f"chosen and rejected part at turn {place + 1}, before their last; only that one may differ")
    return before


def _merged(asked: Turns, before: Turns) -> Turns:
    """The turns before the answers, where a column of its own says them, or some of the first, once more."""
    system = [message for message in asked[:1] if _role(message) == "system"]
    own = [message for message in before[:1] if _role(message) == "system"]
    said, again = before[len(own) :], asked[len(system) :]
    if said[: len(again)] != again or (system and own and system != own):
        raise ValueError("chosen and rejected do not begin with the prompt")
    return [*(system or own), *said]


def _pair(column: str, more: Columns = ()) -> Callable[[SourceRecord], dict[str, Any]]:
    return lambda record: _preference(record, column, more)


def _ranking(column: str, more: Columns = ()) -> Callable[[SourceRecord], dict[str, Any]]:
    return lambda record: {"prompt": _asked(record, column, more)} | answers_and_scores(record)


def _best(column: str, more: Columns = ()) -> Callable[[SourceRecord], dict[str, Any]]:
    return lambda record: {
        "messages": [*_asked(record, column, more), {"role": "assistant", "content": best_answer(record)}]
    }


def _rated(shape: RowShape) -> tuple[RowShape, ...]:
    """The shapes of an answer beside which its rating stands, by the rating's column."""
    return tuple(_rated_in(shape, name) for name in RATINGS)


def _rated_in(shape: RowShape, column: str) -> RowShape:
    return RowShape(
        f"{shape.name}, rated",
        (*shape.needs, column),
        lambda record: shape.read(record) | {"rated": rating(record, column)},
        shape.uses,
        last=True,
        fits=lambda record: rating_column(record) == column,
    )


def _whole(record: SourceRecord) -> bool:
    """Whether both sides of a preference are whole chats, prompt included."""
    sides = [record[name] for name in _SIDES]
    return all(not isinstance(side, str) or dialogue(side) or messages_in(side) for side in sides)


def _is_dialogue(record: SourceRecord) -> bool:
    return isinstance(record["text"], str) and dialogue(record["text"]) is not None


SYSTEM = ("system", "system_prompt")
"""Columns that hold the system message of a row's chat."""
_SECOND_TEXTS = ("question", "query", "premise", "hypothesis", "sentence1", "sentence2", "text_pair")
"""Columns of another text, without which a sentence does not tell its class."""
_CONTEXT = (*SYSTEM, "history")
_SIDES = ("chosen", "rejected")
_CHATS = tuple(
    RowShape(name, (column,), _chat(column), SYSTEM, ours=column == "messages")
    for name, column in (("messages", "messages"), ("ShareGPT", "conversations"), ("ShareGPT", "conversation"))
)
_MORE = ("input", "context")
"""Columns that belong to a question or an instruction, and stand behind it."""
_ANSWERED = tuple(
    RowShape(name, columns, _answered(*columns, more), (*more, *_CONTEXT), ours=name == "prompt and response")
    for name, columns, more in (
        ("prompt and response", ("prompt", "response"), ()),
        ("prompt and completion", ("prompt", "completion"), ()),
        ("alpaca", ("instruction", "output"), _MORE),
        ("dolly", ("instruction", "response"), _MORE),
        ("question and answer", ("question", "answer"), _MORE),
        ("question and response", ("question", "response"), _MORE),
    )
)
_QUESTIONS: tuple[tuple[str, Columns], ...] = (("prompt", ()), ("question", _MORE), ("instruction", _MORE))
_NAMES = {"prompt": "prompt", "question": "question", "instruction": "alpaca", "conversations": "ShareGPT"}


def _asking(
    kind: str,
    columns: tuple[str, ...],
    read: Callable[..., Callable[[SourceRecord], dict[str, Any]]],
    fits: Callable[[SourceRecord], bool] = lambda record: True,
) -> tuple[RowShape, ...]:
    """The shapes that hold a prompt in one of the usual columns, and `columns` beside it."""
    return tuple(
        RowShape(
            f"{_NAMES[asked]}{kind}",
            (asked, *columns),
            read(asked, more),
            (*_CONTEXT, *more),
            ours=asked == "prompt",
            fits=fits,
        )
        for asked, more in (*_QUESTIONS, *([("conversations", ())] if columns else []))
    )


def _ranked(kind: str, read: Callable[..., Callable[[SourceRecord], dict[str, Any]]]) -> tuple[RowShape, ...]:
    """The shapes of a prompt with several answers, by the columns that rank them."""
    return tuple(shape for columns in RANKINGS for shape in _asking(kind, columns, read, _ranked_by(columns)))


def _ranked_by(columns: Columns) -> Callable[[SourceRecord], bool]:
    return lambda record: ranking_columns(record) == columns


_PAIRED = _asking(", chosen and rejected", _SIDES, _pair)
_DIALOGUES = RowShape("whole chats, chosen and rejected", _SIDES, _preference, SYSTEM, last=True, fits=_whole)
SHAPES: dict[str, tuple[RowShape, ...]] = {
    "sft": (
        *_CHATS,
        *_ANSWERED,
        RowShape("dialogue", ("text",), _chat("text"), SYSTEM, last=True, fits=_is_dialogue),
        RowShape("whole chats, of which the chosen", _SIDES, _preferred, SYSTEM, last=True, fits=_whole),
        *(replace(shape, ours=False, last=True) for shape in _ranked(", the best of ranked answers", _best)),
    ),
    "pairs": (
        *_ranked(", ranked answers", _ranking),
        *_PAIRED,
        _DIALOGUES,
        *(rated for shape in (*_CHATS, *_ANSWERED) for rated in _rated(shape)),
    ),
    "prompts": (
        *_CHATS,
        *_asking("", (), _question),
        RowShape("whole chats, the common beginning", _SIDES, _shared, SYSTEM, last=True, fits=_whole),
    ),
    "texts": (
        RowShape("text and label", ("text", "label"), _kept("text", "label"), ours=True),
        RowShape(
            "sentence and label",
            ("sentence", "label"),
            lambda record: {"text": record["sentence"]} | _kept("label")(record),
            fits=lambda record: not any(record.get(name) for name in _SECOND_TEXTS),
        ),
    ),
    "tags": (RowShape("tokens and tags", ("tokens", "tags"), _kept("tokens", "tags"), ours=True),),
    "questions": (
        RowShape("SQuAD", ("question", "context", "answers"), _kept("question", "context", "answers"), ours=True),
    ),
}
"""Shapes by kind of rows, those with our own names first."""
SHAPES |= dict.fromkeys(("pairs_with_margin", "unpaired", "rankings"), SHAPES["pairs"])
