"""Fields of `optimizer` that do not go together."""

from typing import Any

import pytest
from pydantic import ValidationError

from triptych.recipe import Optimizer


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"betas": (0.9, 1)}, "betas of 1; allowed: less than 1"),
        (
            {"name": "adamw_schedule_free", "schedule": "cosine"},
            "schedule cosine with adamw_schedule_free; allowed: constant, with a warmup",
        ),
        (
            {"name": "adamw_schedule_free", "betas": (0, 0.9)},
            r"betas\[0\] 0 with adamw_schedule_free; allowed: more than 0",
        ),
        ({"name": "sgd", "nesterov": True, "momentum": 0}, "nesterov with momentum 0; allowed: momentum more than 0"),
        ({"schedule": "wsd", "warmup": 0.9}, "warmup 0.9 and decay 0.2 with wsd; allowed: together at most 1"),
    ],
)
def test_contradictions_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Optimizer.model_validate(fields)


def test_fields_of_other_optimizers_do_not_matter() -> None:
    Optimizer(name="adamw_schedule_free", warmup=0.1)
    Optimizer(name="adamw", schedule="cosine", nesterov=True, momentum=0)
    Optimizer(schedule="linear", warmup=0.9)
