"""Every strategy gives the gradients of one process."""

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support import rank_strategies, rank_traces
from tests.support.gradient_cases import (
    CASES,
    TOLERANCE,
    WHOLE_METHODS,
    assert_equal,
    few_pairs,
    few_words,
    gradients,
    make_learner,
    make_mixture,
    make_model,
    make_untied,
)
from tests.support.ranks import Ranks
from triptych.errors import UserError

pytestmark = pytest.mark.slow

STRATEGIES = ("ddp", "fsdp", "zero1", "zero2", "zero3")
METHODS = ("lora", "full")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_gradients_are_those_of_one_process(ranks: Ranks, tiny_model_dir: Path, tmp_path: Path, strategy: str) -> None:
    ranks.run(rank_strategies.save_gradients, tiny_model_dir, tmp_path, strategy)
    dtype = torch.float32 if strategy.startswith("zero") else torch.float64
    for method in METHODS:
        for case in CASES:
            found = load_file(tmp_path / f"{method}-{case}.safetensors")
            assert_equal(found, of_one_process(tiny_model_dir, dtype, method, case), TOLERANCE[dtype])


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=() if name in ("fsdp", "zero3") else pytest.mark.exhaustive) for name in STRATEGIES],
)
def test_gradients_of_a_whole_reward_model_are_those_of_one_process(
    ranks: Ranks, tmp_path: Path, strategy: str
) -> None:
    ranks.run(rank_strategies.save_gradients_of_heads, tmp_path, strategy)
    dtype = torch.float32 if strategy.startswith("zero") else torch.float64
    for name, method in WHOLE_METHODS.items():
        learner = make_learner(make_untied(dtype, method))
        expected = gradients(learner, CASES["pairs"][0], [few_pairs(list(range(8)))])
        found = load_file(tmp_path / f"{name}.safetensors")
        assert found["head.weight"].abs().max() > 0
        assert_equal(found, expected, TOLERANCE[dtype])


@pytest.mark.exhaustive
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_gradients_of_lora_on_experts_are_those_of_one_process(ranks: Ranks, strategy: str) -> None:
    expected = gradients(make_learner(make_mixture()), CASES["language"][0], [few_words(list(range(8)))])
    for found in ranks.run(rank_strategies.experts_gradients, strategy):
        assert_equal(found, expected, 1e-6)  # its norms and router compute in float32


def test_zero3_with_lora_on_experts_is_refused() -> None:
    with pytest.raises(UserError, match=r"workers\.strategy: zero3 gathers .*allowed: auto, single, ddp, fsdp"):
        make_learner(make_mixture(), strategy="zero3")


def test_gradients_in_half_are_those_of_one_process(ranks: Ranks, tiny_model_dir: Path, tmp_path: Path) -> None:
    ranks.run(rank_strategies.save_gradients_in_half, tiny_model_dir, tmp_path)
    found = load_file(tmp_path / "full-bfloat16.safetensors")
    assert_equal(found, of_one_process(tiny_model_dir, torch.bfloat16, "full", "language"), 0.05)


def test_a_rank_has_loaded_its_share_of_a_sharded_base(ranks: Ranks, tiny_model_dir: Path) -> None:
    for freed, whole in ranks.run(rank_strategies.freed_by_sharding, tiny_model_dir):
        assert freed == whole - whole // 2


@cache
def of_one_process(folder: Path, dtype: torch.dtype, method: str, case: str) -> dict[str, Tensor]:
    objective, make = CASES[case]
    model = make_model(folder, dtype, roles=(objective.role,), method=method)
    return gradients(make_learner(model), objective, [make(list(range(8)), dtype)])


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=() if name in ("fsdp", "zero3") else pytest.mark.exhaustive) for name in STRATEGIES],
)
def test_losses_are_those_of_one_process_and_training_goes_on(
    ranks: Ranks, tiny_model_dir: Path, alone: dict[str, list[float]], checkpoints: Path, strategy: str
) -> None:
    """Two workers against one; then from their own checkpoint, and from one worker's."""
    for method in METHODS:
        own = str(checkpoints / f"{strategy}-{method}")
        losses, other = ranks.run(rank_traces.train, tiny_model_dir, strategy, method, own)
        assert losses == other
        assert losses == pytest.approx(alone[method], abs=1e-4)
        assert losses[-1] < 0.8 * losses[0]
        resumed, _ = ranks.run(rank_traces.resume, tiny_model_dir, strategy, method, own)
        assert resumed == pytest.approx(losses[10:], abs=1e-6)
        resumed, _ = ranks.run(
            rank_traces.resume, tiny_model_dir, strategy, method, str(checkpoints / f"single-{method}")
        )
        assert resumed == pytest.approx(alone[method][10:], abs=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_one_worker_goes_on_from_two_workers_checkpoint(
    ranks: Ranks, tiny_model_dir: Path, tmp_path: Path, method: str
) -> None:
    losses, _ = ranks.run(rank_traces.train, tiny_model_dir, "fsdp", method, str(tmp_path))
    assert rank_traces.resume(tiny_model_dir, "single", method, str(tmp_path)) == pytest.approx(losses[10:], abs=1e-4)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those of each strategy and method, as `<strategy>-<method>`."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def alone(_tiny_model: Path, checkpoints: Path) -> dict[str, list[float]]:
    """One worker's losses by method."""
    return {
        method: rank_traces.train(_tiny_model, "single", method, str(checkpoints / f"single-{method}"))
        for method in METHODS
    }
