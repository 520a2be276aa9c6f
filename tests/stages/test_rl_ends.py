"""A rollout ends where supervised fine-tuning ends an answer."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.tokenizers import make_tokenizer
from triptych.recipe.matrix import Lora
from triptych.rollout.pool import RolloutPool
from triptych.stages.context import StageContext
from triptych.stages.rl import stage as rl

RL = {
    "kind": "rl",
    "policy": "policy@1",
    "rewards": [{"name": "model", "stage": "reward@1"}],
    "data": {"train": {"path": "prompts.jsonl"}},
    "train": {"steps": 1},
}


class _Policy:
    """What the pool is told of a policy that is no LoRA."""

    method = Lora()
    configs: dict[str, Any] = {}
    is_lora = False


@pytest.mark.parametrize("template", ["chatml", "gemma", "phi 3"])
def test_rollouts_stop_at_the_end_of_a_turn_and_at_every_end_of_the_model(
    make_context: Callable[[dict[str, Any]], StageContext[Any]],
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    template: str,
) -> None:
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    tokenizer = make_tokenizer("bytes", template)
    tokenizer.save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 11]}))
    asked: dict[str, Any] = {}
    monkeypatch.setattr(RolloutPool, "start", lambda **given: asked.update(given))
    monkeypatch.setattr(rl, "is_lora", lambda method: False)
    rl.start_pool(replace(make_context(RL), base_dir=folder), _Policy())  # type: ignore[arg-type]
    end = {"chatml": "<|im_end|>", "gemma": "<end_of_turn>", "phi 3": "<|end|>"}[template]
    assert asked["stop_token_ids"] == [*tokenizer.convert_tokens_to_ids([end, "</s>"]), 11]
