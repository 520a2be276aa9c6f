"""Which cores and which vLLM settings an engine gets."""

import pytest

from triptych.recipe.rollout import Rollout
from triptych.rollout.engine import EnginePlan, Place
from triptych.rollout.pool import choose_cores
from triptych.rollout.sync import resolve_mode


def place(*cores: int) -> Place:
    return Place("node", 1, cores)


def test_engines_get_cores_of_their_own() -> None:
    first = choose_cores(place(2, 3, 6, 7), threads=2, taken=[])
    second = choose_cores(place(2, 3, 6, 7), threads=2, taken=first)
    assert (first, second) == ((2, 3), (6, 7))


def test_too_few_cores_means_no_pinning() -> None:
    assert choose_cores(place(0, 1), threads=2, taken=[0]) == ()
    assert choose_cores(place(0), threads=2, taken=[]) == ()


def plan(**settings: object) -> EnginePlan:
    rollout = Rollout.model_validate(settings)
    return EnginePlan("model", "bfloat16", rollout, resolve_mode(rollout.sync, on_gpu=False), 128, 12, (2,))


def test_threads_reach_openmp() -> None:
    assert plan(threads=3).environment()["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("gpus", [0.0, 0.5])
def test_memory_follows_the_device(gpus: float) -> None:
    arguments = plan(gpus=gpus, kv_cache_gb=1.5, gpu_memory=0.3).vllm_arguments()
    if gpus:
        assert arguments["gpu_memory_utilization"] == 0.3
        assert "kv_cache_memory_bytes" not in arguments
        assert "enforce_eager" not in arguments
    else:
        assert arguments["kv_cache_memory_bytes"] == 3 * 2**29
        assert arguments["enforce_eager"]


def test_adapter_rank_is_one_that_vllm_has() -> None:
    assert plan(sync="adapter").vllm_arguments()["max_lora_rank"] == 16
    assert "enable_lora" not in plan().vllm_arguments()
