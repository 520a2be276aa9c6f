"""Rewards by rule: numbers compared with the right ones, tasks of a library, a form, a length."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import regex

from triptych.data import reasoning
from triptych.data.answers import final_number, right_answers
from triptych.errors import UserError
from triptych.recipe.reward import EnvironmentReward, FormatReward, Gsm8kReward, LengthReward, ReasoningGymReward
from triptych.rewards.asking import Asking, RefusedError, in_thread
from triptych.rewards.base import Answer, Given
from triptych.rewards.in_calls import in_calls

Rule = Callable[[Answer], float]
"""The score of an answer; ValueError where it has none."""


@dataclass(frozen=True)
class RuleScore:
    """What a rule says of each answer by itself."""

    rule: Rule

    async def score(self, answers: Sequence[Answer], asking: Asking) -> Sequence[Given]:
        """The rule's scores; an answer that it cannot judge fails alone."""

        async def call(some: Sequence[Answer]) -> Any:
            try:
                return await in_thread(lambda: [self.rule(answer) for answer in some])
            except ValueError as error:
                raise RefusedError(str(error)) from error

        return await in_calls(answers, 1, asking, call)


def gsm8k(settings: Gsm8kReward) -> RuleScore:
    """1 where the answer ends on the right number, else 0."""

    def rule(answer: Answer) -> float:
        if answer.fields.get(settings.answer) is None:
            raise ValueError(f"the prompt's row has no column {settings.answer!r}")
        right = {final_number(text) for text in right_answers(answer.fields[settings.answer])}
        if None in right:
            raise ValueError(f"column {settings.answer!r} of the prompt's row has no number")
        return float(final_number(answer.text) in right)

    return RuleScore(rule)


def reasoning_gym(settings: ReasoningGymReward) -> RuleScore:
    """What the task of the prompt's row says. UserError: its library is not installed."""
    try:
        reasoning.library()
    except UserError as error:
        raise UserError(f"name: {error}") from error

    def rule(answer: Answer) -> float:
        if why := settings.refuses(answer.fields):
            raise ValueError(why)
        given = reasoning.score(answer.text, answer.fields)
        return given if settings.partial else float(given >= 1)

    return RuleScore(rule)


def earned(settings: EnvironmentReward) -> RuleScore:
    """What the environment gave."""
    return RuleScore(lambda answer: answer.earned)


def written_as(settings: FormatReward) -> RuleScore:
    """1 where the pattern matches the whole answer, else 0."""
    pattern, seconds = regex.compile(settings.pattern), settings.calls.timeout_s

    def rule(answer: Answer) -> float:
        try:
            return float(pattern.fullmatch(answer.text, concurrent=True, timeout=seconds) is not None)
        except TimeoutError:
            raise ValueError(f"the pattern finds no end within {seconds:g} s") from None

    return RuleScore(rule)


def length(settings: LengthReward) -> RuleScore:
    """From 0 to -1: by the distance from a target, or above a limit (Yu et al. 2025, arXiv 2503.14476, equation 13)."""

    def rule(answer: Answer) -> float:
        tokens = answer.tokens
        if settings.target is not None and settings.tolerance is not None:
            return -min(1.0, abs(tokens - settings.target) / settings.tolerance)
        assert settings.cache is not None
        return -min(1.0, max(0, tokens - settings.unpunished) / settings.cache)

    return RuleScore(rule)
