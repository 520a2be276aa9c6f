"""Rows of an evaluation's sets are checked before anything starts, by plan and by run."""

from collections.abc import Callable
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.stages.preflight import check_plan, check_run


@pytest.mark.parametrize(
    ("row", "measure", "told"),
    [
        ({"prompt": "Hi"}, "multiple_choice", "line 1: no 'choices'"),
        ({"prompt": "Hi", "choices": ["A", "B"], "answer": 2}, "multiple_choice", "line 1: answer: 2 is none of the"),
        ({"prompt": "Hi", "choices": ["A"], "answer": 0}, "multiple_choice", "line 1: choices: 1; allowed: 2 or more"),
        ({"prompt": "Hi", "choices": ["1", "0"], "answer": "1"}, "multiple_choice", "of one choice and the index of"),
        (
            {"prompt": "Hi", "choices": ["A", "<|im_end|>"], "answer": 0},
            "multiple_choice",
            "choices.1.: holds the control",
        ),
        ({"prompt": "Hi"}, "verifier", "line 1: no 'answer'"),
        ({"prompt": "warm " * 2000, "answer": 1}, "verifier", "1 of 1 prompts are longer than 1024 tokens"),
        ({"prompt": "Hi"}, "loss", "malformed as sft"),
    ],
)
def test_a_malformed_row_of_a_set_is_refused_with_its_field(
    evaluate: Callable[..., Any],
    write_rows: Callable[..., dict[str, str]],
    row: dict[str, Any],
    measure: str,
    told: str,
) -> None:
    ctx = evaluate(["base"], {"rows": {"data": write_rows("rows", [row]), "measure": {"name": measure}}})
    with pytest.raises(UserError, match=rf"(?s)^stages\.only\.sets\.rows\.data: .*{told}"):
        check_run(ctx.recipe, ["only"], ctx.base_dir)
    with pytest.raises(UserError, match=rf"(?s)^stages\.only\.sets\.rows\.data: .*{told}"):
        check_plan(ctx.recipe, ["only"], pytest.fail)
