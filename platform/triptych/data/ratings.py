"""Ratings of answers in a row's columns: one of a single answer, or those of several, as scores or as ranks."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from triptych.data.cells import finite, from_json, listed, text

RATINGS = ("score", "rating", "label")
"""Columns that rate an answer; of several the first. A `label` does where it is true or false."""
RANKINGS = (("answers", "scores"), ("answers", "ranks"), ("answers",))
"""Columns of several answers; `ranks` count from the best, and answers alone are objects that have one or the other."""
_TEXTS = ("answer", "text", "response", "content", "completion")
_SCORES = ("score", "rating", "overall_score")
_YES, _NO = (True, "true", "True"), (False, "false", "False")


@dataclass(frozen=True, slots=True)
class Rating:
    """What a row says of its answer."""

    score: float
    """Higher is better."""
    measured: bool
    """False: it says only good or bad, not by how much."""


def rating_column(record: Mapping[str, Any]) -> str | None:
    """The column that rates the row's answer, if any."""
    return next((name for name in RATINGS if record.get(name) is not None and _rates(record, name)), None)


def _rates(record: Mapping[str, Any], name: str) -> bool:
    return name != "label" or _is(record[name], _YES, record) or _is(record[name], _NO, record)


def _is(value: Any, words: tuple[Any, ...], record: Mapping[str, Any]) -> bool:
    """Whether a label says so; a number does beside a `completion`, as files of KTO have it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return "completion" in record and value in words
    return isinstance(value, bool | str) and value in words


def rating(record: Mapping[str, Any], name: str) -> Rating:
    """The rating in a column. ValueError: it is no number."""
    if name == "label":
        return Rating(float(_is(record[name], _YES, record)), measured=False)
    return Rating(finite(record[name], name), measured=True)


def is_rated_bad(record: Mapping[str, Any]) -> bool:
    """Whether the row's label says that its answer is a bad one."""
    return record.get("label") is not None and _is(record["label"], _NO, record)


def ranking_columns(record: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The columns that hold and rank several answers, as one of `RANKINGS`; None: there are none."""
    if not record.get("answers"):
        return None
    by_column = (columns for columns in RANKINGS[:2] if record.get(columns[1]) is not None)
    return next(by_column, RANKINGS[2] if _objects(record["answers"]) else None)


def _objects(value: Any) -> list[Mapping[str, Any]]:
    """The objects that a list, or the JSON text of one, consists of; empty where it has anything else."""
    if isinstance(value, str):
        try:
            value = from_json(value, "answers", "a list")
        except ValueError:
            return []
    return value if isinstance(value, list) and all(isinstance(item, Mapping) for item in value) else []


def answers_and_scores(record: Mapping[str, Any]) -> dict[str, Any]:
    """Columns `answers` and `scores` or `ranks` of a row with several answers."""
    columns = ranking_columns(record)
    if columns != RANKINGS[2]:
        return {name: record[name] for name in columns or ()}
    answers = _objects(record["answers"])
    said = next((name for name in _TEXTS if all(name in answer for answer in answers)), None)
    scored = next(
        (name for name in (*_SCORES, "rank") if all(answer.get(name) is not None for answer in answers)), None
    )
    if said is None or scored is None:
        raise ValueError(
            f"answers: objects, of which not each has a text ({', '.join(_TEXTS)}) and a score "
            f"({', '.join(_SCORES)}) or a rank"
        )
    return {"answers": [answer[said] for answer in answers]} | {
        "ranks" if scored == "rank" else "scores": [answer[scored] for answer in answers]
    }


def scored(record: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Score and text of each of several answers, the best first; a rank is a score with its sign turned.

    Raises:
        ValueError: there are not as many scores as answers, or one of them is no number or no text.
    """
    name = "ranks" if record.get("scores") is None else "scores"
    answers, values = listed(record["answers"], "answers"), listed(record[name], name)
    if len(answers) != len(values):
        raise ValueError(f"{len(answers)} answers and {len(values)} {name}")
    sign = -1 if name == "ranks" else 1
    found = [
        (sign * finite(value, f"{name}[{place}]"), text(answer, f"answers[{place}]"))
        for place, (answer, value) in enumerate(zip(answers, values, strict=True))
    ]
    return sorted(found, key=lambda item: -item[0])


def best_answer(record: Mapping[str, Any]) -> str:
    """The answer with the highest score, of equals the first.

    Raises:
        ValueError: there is no answer, or a score is no number.
    """
    if not (found := scored(answers_and_scores(record))):
        raise ValueError("answers: there is none")
    return found[0][1]
