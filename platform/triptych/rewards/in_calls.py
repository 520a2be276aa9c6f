"""Scores by calls that have several answers each, and the check of what such a call gives."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from numbers import Real
from typing import Any

from triptych.rewards.asking import Asking, Failed, RefusedError
from triptych.rewards.base import Answer, Given

AnswersCall = Callable[[Sequence[Answer]], Awaitable[Any]]
"""Scores of some answers, of whatever form."""


async def in_calls(answers: Sequence[Answer], per_call: int | None, asking: Asking, call: AnswersCall) -> list[Given]:
    """A score of each answer, by calls with `per_call` answers each; None: by one with all of them."""
    size = per_call or len(answers)
    cuts = [answers[at : at + size] for at in range(0, len(answers), size)]
    found = await asyncio.gather(*(asking(partial(_checked, call, cut)) for cut in cuts))
    return [
        score
        for cut, given in zip(cuts, found, strict=True)
        for score in ([given] * len(cut) if isinstance(given, Failed) else given)
    ]


async def _checked(call: AnswersCall, answers: Sequence[Answer]) -> list[Given]:
    """What a call gives, as a score of each answer. RefusedError: it is no list of as many."""
    found = await call(answers)
    values = found.tolist() if hasattr(found, "tolist") else found
    if not isinstance(values, list | tuple):
        raise RefusedError(f"it gave {type(values).__name__}, not a list of scores")
    if len(values) != len(answers):
        raise RefusedError(f"it gave {len(values)} scores for {len(answers)} answers")
    return [score_of(value) for value in values]


def score_of(value: Any) -> Given:
    """A value as a score, None as such; what is no finite number is a failure."""
    value = value.item() if hasattr(value, "item") else value
    if value is None:
        return None
    if not isinstance(value, Real):
        return Failed(f"{str(value)[:40]!r} is no number, but {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        return Failed("a number that is too large")
    return number if math.isfinite(number) else Failed(f"{number} is no finite number")
