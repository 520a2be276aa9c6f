"""What `auto` comes to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.plan import estimate, machine, resolve_strategy, with_strategy
from triptych.recipe import Recipe

Reviews = Callable[..., Recipe]

EIGHT_BILLION: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


@pytest.fixture
def large(reviews: Reviews, tmp_path: Path) -> Reviews:
    """The recipe with a base of eight billion weights, on GPUs."""
    (tmp_path / "config.json").write_text(json.dumps(EIGHT_BILLION))
    base = (f"model.base={tmp_path}", "stages.ppo.policy=a@1", "stages.sft.train.memory.checkpointing=full")
    return lambda *overrides: reviews(*base, *overrides)


def test_one_worker_is_single_and_more_are_ddp(reviews: Reviews) -> None:
    on = machine("8xh100-80")
    assert resolve_strategy(reviews(), "sft", on) == "single"
    assert resolve_strategy(reviews("stages.sft.train.workers.count=2"), "sft", on) == "ddp"
    assert resolve_strategy(reviews("stages.ppo.train.workers.count=2"), "ppo", on) == "ddp"


def test_what_the_recipe_names_stays(reviews: Reviews) -> None:
    recipe = reviews("stages.sft.train.workers={count: 2, strategy: zero1}")
    assert resolve_strategy(recipe, "sft", machine("8xh100-80")) == "zero1"


@pytest.mark.parametrize(
    ("method", "dtype", "on", "strategy"),
    [
        ("lora", "bfloat16", "8xh100-80", "ddp"),
        ("full", "bfloat16", "8xh100-80", "fsdp"),
        ("lora", "bfloat16", "8xl4-24", "ddp"),
        ("lora", "float32", "8xl4-24", "fsdp"),
    ],
)
def test_sharded_where_a_gpu_does_not_hold_it_all(
    large: Reviews, method: str, dtype: str, on: str, strategy: str
) -> None:
    method = f"stages.sft.method={{name: {method}}}"
    recipe = large(method, f"model.dtype={dtype}", "stages.sft.train.workers={count: 8, gpus: 1}")
    assert resolve_strategy(recipe, "sft", machine(on)) == strategy
    assert estimate(recipe, machine=on, stage="sft").stages["sft"].strategy == strategy


def test_what_sharding_does_not_help_is_refused(large: Reviews) -> None:
    recipe = large("stages.sft.method={name: full}", "stages.sft.train.workers={count: 2, gpus: 1}")
    assert resolve_strategy(recipe, "sft", machine("2xl4-24")) == "ddp"
    with pytest.raises(UserError, match=r"stages.sft does not fit machine .* no setting fits: with micro_tokens 512, "):
        estimate(recipe, machine="2xl4-24", stage="sft")


def test_a_base_of_unknown_sizes_is_left_to_ddp(reviews: Reviews, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "homemade"}))
    recipe = reviews(f"model.base={tmp_path}", "stages.sft.train.workers.count=2")
    assert resolve_strategy(recipe, "sft", machine("local")) == "ddp"


def test_a_stage_takes_the_strategy(reviews: Reviews) -> None:
    stages = reviews().trained
    ppo, sft = with_strategy(stages["ppo"], "ddp"), with_strategy(stages["sft"], "fsdp")
    assert ppo.workers.strategy == "ddp"
    assert sft.train.workers.strategy == "fsdp"
    assert stages["ppo"] != ppo
    assert sft.train.optimizer == with_strategy(sft, "single").train.optimizer
