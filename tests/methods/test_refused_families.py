"""Methods refuse a model that they do not fit by name, whatever its family."""

from typing import Any

import pytest
import torch

from tests.support.families import tiny
from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.methods import METHODS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "method", "settings", "said"),
    [
        ("qwen3_next", "pissa", {"r": 16}, r"method\.r: 16 with init pissa, and .*in_proj_ba is a matrix of rank 4;"),
        (
            "llama",
            "lora",
            {"r": 34, "init": "olora"},
            r"method\.r: 34 with init olora, and .*k_proj is a matrix",
        ),
        ("olmo", "ln_tuning", {}, r"method\.name: no norm of this model has a weight"),
        ("gpt2", "loha", {}, r"method\.name: loha does not fit this model: .*Conv1D"),
    ],
)
def test_a_method_that_does_not_fit_says_why(family: str, method: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        RoleModel(tiny(family, torch.float32)).add("policy", METHODS[method].config(**settings), trainable=True)
