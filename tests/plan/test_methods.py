"""The plan knows every method: what it trains, and that less is needed for it than for all weights."""

from pathlib import Path
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.methods import METHODS
from triptych.plan import estimate
from triptych.recipe import load_recipe
from triptych.recipe.method import PRESETS

SETTINGS = {"freeze": "{name: freeze, layers: 1}", "bitfit": "{name: bitfit, missing: add}"}
SETTINGS |= {"vblora": "{name: vblora, vector_length: 32}", "hybrid": "[{name: lora}, {name: p_tuning_v2, lr: 5e-3}]"}


def parts_of(recipe: Path, method: str) -> dict[str, Any]:
    loaded = load_recipe(recipe, [f"stages.sft.method={method}", "stages.ppo.policy=other@1"])
    return dict(estimate(loaded, stage="sft").stages["sft"].roles["policy"].parts)


@pytest.mark.parametrize("name", [*METHODS, *PRESETS, "hybrid"])
def test_every_method_is_estimated(three_stages: Path, name: str) -> None:
    found = parts_of(three_stages, SETTINGS.get(name, f"{{name: {name}}}"))
    full = parts_of(three_stages, "{name: full}")
    trained = found["gradients"].expected
    assert 0 < trained <= full["gradients"].expected
    assert found["optimizer"].expected == 2 * trained
    assert ("masters" in found) == (name in ("full", "freeze"))


def test_what_a_method_cannot_change_is_refused(three_stages: Path) -> None:
    with pytest.raises(UserError, match=r"stages.sft.method.vector_length: 256 does not divide self_attn.q_proj"):
        parts_of(three_stages, "{name: vblora}")
    with pytest.raises(UserError, match=r"stages.sft.method.layers: 40; allowed: 0 to 29"):
        parts_of(three_stages, "{name: dora, layers: [0, 40]}")
