"""Tasks of reasoning-gym: rows of prompts, and the score of an answer by the task's own rule.

Stojanovski et al. 2025 (arXiv 2505.24760), https://github.com/open-thought/reasoning-gym. A row is the library's entry
(`question`, `answer`, `metadata`) with a `prompt`, and `config` where the task has settings: all that a score needs.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from types import ModuleType
from typing import Any

from triptych.errors import UserError
from triptych.recipe.spec import did_you_mean

ENTRY = ("question", "answer", "metadata")
"""Columns of a row that the library's rule reads."""
_DRAWS = 4
"""Entries that are drawn for each row that is wanted, at most: tasks ask some questions again."""


@dataclass(frozen=True)
class TaskRows:
    """Rows of a task, of which no two have the same question."""

    train: list[dict[str, Any]]
    heldout: list[dict[str, Any]]


def library() -> ModuleType:
    """The package. UserError: it is not installed."""
    try:
        import reasoning_gym
    except ImportError as error:
        raise UserError(
            f"reasoning-gym cannot be imported ({error}); install it by pip install 'triptych[reasoning]'"
        ) from error
    return reasoning_gym


def task_rows(
    task: str, config: Mapping[str, Any], *, train: int, heldout: int, seed: int, request: str = ""
) -> TaskRows:
    """Rows with different questions; the held-out ones come first, and stay as they are with more rows to train on.

    Args:
        request: stands behind each question, such as the form that the answer should have.

    Raises:
        UserError: no such task or setting, too few different questions, or a task whose rows JSON cannot hold.
    """
    wanted = heldout + train
    rows = list(islice(_different(_rows(task, config, _DRAWS * wanted, seed, request)), wanted))
    if len(rows) < wanted:
        raise UserError(
            f"{task}: {len(rows)} different questions among {_DRAWS * wanted}, and {wanted} rows are wanted; "
            "ask for fewer, or widen the task's settings"
        )
    return TaskRows(rows[heldout:], rows[:heldout])


def score(text: str, row: Mapping[str, Any]) -> float:
    """The task's score of an answer, mostly from 0 to 1: of what `<answer>` has, or of the whole text without one.

    ValueError: the row is none of a task's.
    """
    from reasoning_gym.utils import extract_answer

    entry = {name: row.get(name) for name in ENTRY}
    metadata = entry["metadata"]
    name = metadata.get("source_dataset") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str) or not isinstance(entry["question"], str):
        raise ValueError("the prompt's row has no `question`, or no `metadata` with `source_dataset`")
    tagged = extract_answer(text)
    rule = _rule(name, json.dumps(row.get("config") or {}, sort_keys=True))
    return float(rule.score_answer(text if tagged is None else tagged, entry))


def _rows(task: str, config: Mapping[str, Any], count: int, seed: int, request: str) -> Iterator[dict[str, Any]]:
    tasks = _task(task, {**config, "seed": seed, "size": count})
    for number in range(count):
        entry = tasks[number]
        own = {name: entry[name] for name in ENTRY}
        prompt = "\n".join(part for part in (entry["question"].strip(), request) if part)
        row = {"prompt": prompt, **own, **({"config": dict(config)} if config else {})}
        try:
            read: dict[str, Any] = json.loads(json.dumps(row))
        except TypeError as error:
            raise UserError(f"{task}: its entries cannot be written as JSON: {error}") from error
        if score(str(entry["answer"]), read) != float(tasks.score_answer(str(entry["answer"]), entry)):
            raise UserError(f"{task}: entries read from JSON score otherwise; score it by a function instead")
        yield read


def _different(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The rows whose question none before them has."""
    asked: set[str] = set()
    for row in rows:
        if row["question"] not in asked:
            asked.add(row["question"])
            yield row


@lru_cache(maxsize=64)
def _rule(task: str, config: str) -> Any:
    try:
        return _task(task, json.loads(config))
    except UserError as error:
        raise ValueError(str(error)) from error


def _task(task: str, config: Mapping[str, Any]) -> Any:
    """The library's data set. UserError: no such task, no such setting, or a value that the task does not take."""
    library()
    from reasoning_gym.factory import DATASETS, create_dataset

    known = sorted(set(DATASETS) - {"composite"})
    if task not in known:
        raise UserError(f"no task {task!r} in reasoning-gym{did_you_mean(task, known)}; allowed: {', '.join(known)}")
    fields = [field.name for field in dataclasses.fields(DATASETS[task][1])]
    if unknown := [name for name in config if name not in fields]:
        own = ", ".join(name for name in fields if name not in ("seed", "size"))
        raise UserError(f"{task}: no setting {unknown[0]!r}{did_you_mean(unknown[0], fields)}; allowed: {own}")
    try:
        return create_dataset(task, **config)
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"{task}: {str(error) or 'a value that the task does not take'}") from error
