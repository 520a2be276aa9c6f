"""Answers to the same held-out prompts before and after training, side by side."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from triptych.observe.runs import JsonObject

MAX_PROMPTS = 40
"""Prompts that a page shows; the run's folder has them all."""


@dataclass(frozen=True)
class Pair:
    """One prompt and its first answer before and after training; None if there is none."""

    prompt: str
    question: str
    """The prompt's last user turn, for reading."""
    before: JsonObject | None
    after: JsonObject | None


def sets(samples: dict[str, list[JsonObject]]) -> list[str]:
    """Suffixes of the labels of each held-out set: empty for the one without a name, which comes first."""
    return list(dict.fromkeys(["", *sorted(f".{own}" for label in samples if (own := label.partition(".")[2]))]))


def pairs(samples: dict[str, list[JsonObject]], of: str = "") -> tuple[list[Pair], int]:
    """The pairs to show of one of `sets`, and the number of distinct prompts, in the order in which they were asked."""
    before, after = (_first_answers(samples.get(f"{label}{of}", [])) for label in ("before", "after"))
    prompts = list(dict.fromkeys([*before, *after]))
    shown = [Pair(prompt, question(prompt), before.get(prompt), after.get(prompt)) for prompt in prompts[:MAX_PROMPTS]]
    return shown, len(prompts)


def means(rows: Sequence[JsonObject]) -> dict[str, float]:
    """Mean `reward`, `judge` and `watch` over the answers that have one."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for key in ("reward", "judge", "watch"):
            if isinstance(row.get(key), int | float):
                values[key].append(row[key])
    return {key: sum(found) / len(found) for key, found in values.items()}


def question(prompt: str) -> str:
    """The last user turn of a decoded chat whose roles stand on lines of their own; else the whole prompt."""
    turns = re.split(r"(?:^|\n)\s*(user|assistant|system)(?:\n|$)", prompt)
    spoken = [text.strip() for role, text in zip(turns[1::2], turns[2::2], strict=True) if role == "user"]
    return spoken[-1] if spoken else prompt.strip()


def _first_answers(rows: Sequence[JsonObject]) -> dict[str, dict[str, Any]]:
    found: dict[str, JsonObject] = {}
    for row in rows:
        found.setdefault(str(row.get("prompt", "")), row)
    return found
