"""Which cores and which vLLM settings an engine gets."""

import subprocess
import sys

import pytest

from triptych.engines.base import EnginePlan, resolve_mode
from triptych.engines.vllm import VllmEngine, vllm_arguments
from triptych.recipe.rollout import Rollout
from triptych.rollout.coordinator import choose_cores
from triptych.rollout.engine_actor import EngineProcess


def place(*cores: int) -> EngineProcess:
    return EngineProcess("node", 1, cores)


def test_engines_get_cores_of_their_own() -> None:
    first = choose_cores(place(2, 3, 6, 7), threads=2, taken=[])
    second = choose_cores(place(2, 3, 6, 7), threads=2, taken=first)
    assert (first, second) == ((2, 3), (6, 7))


def test_too_few_cores_means_no_pinning() -> None:
    assert choose_cores(place(0, 1), threads=2, taken=[0]) == ()
    assert choose_cores(place(0), threads=2, taken=[]) == ()


def plan(**settings: object) -> EnginePlan:
    rollout = Rollout.model_validate(settings)
    return EnginePlan("model", "bfloat16", rollout, resolve_mode(rollout, "bfloat16", "model"), 128, 12, (2,))


def test_threads_reach_openmp() -> None:
    assert VllmEngine.environment(plan(threads=3))["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize("gpus", [0.0, 0.5])
def test_memory_follows_the_device(gpus: float) -> None:
    arguments = vllm_arguments(plan(gpus=gpus, kv_cache_gb=1.5, gpu_memory=0.3))
    if gpus:
        assert arguments["gpu_memory_utilization"] == 0.3
        assert "kv_cache_memory_bytes" not in arguments
        assert "enforce_eager" not in arguments
    else:
        assert arguments["kv_cache_memory_bytes"] == 3 * 2**29
        assert arguments["enforce_eager"]


def test_an_engine_has_room_for_prompt_and_answer_and_no_more() -> None:
    """A base whose context these two fill is no shorter than what the engine asks for."""
    assert vllm_arguments(plan())["max_model_len"] == 128


def test_adapter_rank_is_one_that_vllm_has() -> None:
    assert vllm_arguments(plan(sync="adapter"))["max_lora_rank"] == 16
    assert "enable_lora" not in vllm_arguments(plan())


@pytest.mark.slow
def test_a_pool_is_scheduled_without_torch_and_vllm() -> None:
    """The coordinator is a process of its own: they would cost it seconds and hundreds of megabytes."""
    loaded = "import sys, triptych.rollout.pool; print([name for name in ('torch', 'vllm') if name in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", loaded], check=True, capture_output=True, text=True).stdout
    assert shown == "[]\n"
