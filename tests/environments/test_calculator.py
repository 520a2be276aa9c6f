"""The calculator: what it computes, and what it refuses to."""

import pytest

from triptych.environments.base import Step
from triptych.environments.calculator import CalculatorEpisode, reply


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * 4", "20"),
        ("7 / 2", "3.5"),
        ("-7 // 2", "-4"),
        ("10 % 4", "2"),
        ("2 ** 10", "1024"),
        (" 0.1 + 0.2 ", "0.3"),
    ],
)
def test_expressions_are_calculated(expression: str, value: str) -> None:
    assert reply(expression) == value


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "print(1)",
        "a + 1",
        "9 ** 9 ** 9",
        "1e300 * 1e300",
        "1 / 0",
        "(-1) ** 0.5",
        "1 +",
        "[1, 2][0]",
        "'a' * 9",
        "True + 1",
        "1" * 201,
        "(" * 150 + "1" + ")" * 150,
    ],
)
def test_anything_else_is_an_error_and_not_run(expression: str) -> None:
    assert reply(expression).startswith("error: ")


def test_the_last_call_of_a_turn_is_answered_and_a_turn_without_one_ends() -> None:
    episode = CalculatorEpisode.of({})
    assert episode.step("<calc>1+1</calc> or <calc>2+2</calc>") == Step("4")
    assert episode.step("It is 4.") == Step()
