"""What rounding leaves of a change of weights."""

import math

import pytest
import torch

from triptych.methods.kept import LEAST, chosen_dtype, kept_in


def weights(
    scale: float, dtype: torch.dtype = torch.float32
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights that bfloat16 holds exactly, and the same with a change of this relative size."""
    draw = torch.Generator().manual_seed(0)
    before = torch.randn(200, 300, generator=draw).to(torch.bfloat16)
    change = torch.randn(200, 300, generator=draw) * scale
    return {"a": before.to(dtype)}, {"a": before.float() + change}


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float32])
def test_a_small_change_is_lost_in_bfloat16_and_kept_in_float16(stored: torch.dtype) -> None:
    before, after = weights(0.0022, stored)
    change = after["a"].double() - before["a"].double()
    rounded = after["a"].to(torch.bfloat16).double() - before["a"].double()
    expected = float((rounded * change).sum() / (change * change).sum())
    half = kept_in("bfloat16", before, after)
    assert half.share == pytest.approx(expected, rel=1e-9)
    assert half.share < 0.95
    assert not half.enough
    assert float((rounded == 0).double().mean()) > 0.4, "so many entries do not move"
    assert kept_in("float16", before, after).share == pytest.approx(1.0, abs=2e-3)
    assert kept_in("float32", before, after).share == pytest.approx(1.0, abs=1e-6)
    assert chosen_dtype("llama", before, after).dtype == "float16"
    assert chosen_dtype("gemma2", before, after).dtype == "float32", "engines do not run it in float16"


def test_a_large_change_is_kept_in_bfloat16() -> None:
    before, after = weights(0.5)
    found = chosen_dtype("llama", before, after)
    assert (found.dtype, found.enough) == ("bfloat16", True)


def test_the_tensor_that_loses_most_is_named() -> None:
    (large, after_large), (small, after_small) = weights(0.5), weights(0.0005)
    before = {"large": large["a"], "small": small["a"], "same": large["a"]}
    after = {"large": after_large["a"], "small": after_small["a"], "same": large["a"]}
    found = kept_in("bfloat16", before, after)
    assert found.tensor == "small"
    assert found.least < 0.9 < LEAST <= found.share


def test_what_outgrows_float16_is_not_merged_in_it() -> None:
    before, after = {"a": torch.tensor([1e5, 1.0])}, {"a": torch.tensor([1e5, 1.001])}
    found = kept_in("float16", before, after)
    assert math.isnan(found.share)
    assert not found.enough
    assert chosen_dtype("llama", before, after).dtype == "float32"


def test_nothing_changed_is_nothing_lost() -> None:
    before, _ = weights(0.1)
    assert kept_in("bfloat16", before, before).share == 1.0
