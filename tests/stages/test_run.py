"""What a run says before its first stage starts."""

from pathlib import Path

import pytest

from triptych.recipe import load_recipe
from triptych.stages.run import warn_of_emulation


@pytest.mark.parametrize(
    ("flags", "dtype", "names", "said"),
    [
        ({"avx2"}, "bfloat16", {"sft", "ppo"}, "(stages: sft, ppo)"),
        ({"avx2", "avx512_bf16"}, "bfloat16", {"sft"}, None),
        ({"avx2"}, "float32", {"sft"}, None),
        ({"avx2"}, "bfloat16", set(), None),
    ],
)
def test_a_run_warns_where_bfloat16_is_emulated(
    three_stages: Path,
    caplog: pytest.LogCaptureFixture,
    flags: set[str],
    dtype: str,
    names: set[str],
    said: str | None,
) -> None:
    warn_of_emulation(load_recipe(three_stages, [f"model.dtype={dtype}"]), names, flags)
    assert caplog.messages == [] if said is None else said in caplog.text


def test_a_stage_on_gpus_is_not_warned_of(three_stages: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load_recipe(three_stages, ["stages.sft.train.workers.gpus=1"])
    warn_of_emulation(recipe, {"sft"}, {"avx2"})
    assert not caplog.messages
