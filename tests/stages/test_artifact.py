"""Outputs of stages: committed and registered where a metric is no number, and whole models with their ends."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tokenizers import make_tokenizer
from triptych import storage
from triptych.forward.roles import RoleModel
from triptych.models.base import load_causal_lm
from triptych.recipe import Full, Lora
from triptych.stages.artifact import METRICS, commit_role, finish, measured, summary
from triptych.stages.context import StageContext
from triptych.train.learner import Learner

Make = Callable[[dict[str, Any]], StageContext[Any]]
STAGE = {
    "kind": "sft",
    "method": {"name": "lora", "r": 4},
    "data": {"train": {"path": "x"}},
    "train": {"steps": 2},
}


@pytest.fixture
def ctx(make_context: Make) -> StageContext[Any]:
    return make_context(STAGE)


def learner(ctx: StageContext[Any]) -> Learner:
    model = RoleModel(load_causal_lm(ctx.base_dir, torch.float32))
    model.add("policy", Lora(r=4), trainable=True)
    return Learner(model, {"policy": ctx.stage.train.optimizer}, {"policy": 2})


def test_a_metric_that_is_no_number_is_left_out_and_named(
    ctx: StageContext[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        commit_role(ctx, learner(ctx), "policy", {"heldout_loss": math.nan, "heldout_f1": 0.5, "heldout_x": math.inf})
    assert "no finite numbers: heldout_loss, heldout_x" in caplog.text
    assert measured(ctx) == {"heldout_f1": 0.5}
    version = finish(ctx, {"parents": {}}, measured(ctx))
    assert ctx.registry().get(version.ref).metrics == {"heldout_f1": 0.5}


def test_an_output_that_an_earlier_version_committed_with_nan_is_registered(ctx: StageContext[Any]) -> None:
    """Its run ended after all of its steps, and again each time that it was started."""
    commit_role(ctx, learner(ctx), "policy", {})
    artifact = Path(ctx.artifact)
    contents = {file.name: file.read_bytes() for file in artifact.iterdir() if file.name != "manifest.json"}
    storage.remove(ctx.artifact)
    with storage.committed(ctx.artifact) as folder:
        for name, content in contents.items():
            (folder / name).write_bytes(content)
        (folder / METRICS).write_text('{"heldout_reward": 0.25, "heldout_reward_std": NaN}')
    version = finish(ctx, {"parents": {}}, measured(ctx))
    assert version.metrics == {"heldout_reward": 0.25}
    written = summary(ctx.run, ctx.name)
    assert written is not None
    json.dumps(written, allow_nan=False)


def test_a_whole_model_stops_at_the_learned_end_of_a_turn(make_context: Make, tmp_path: Path) -> None:
    """Its base stops at the tokenizer's own end, which no turn of this template has."""
    ctx = make_context(STAGE | {"method": {"name": "full"}})
    base = Path(shutil.copytree(ctx.base_dir, tmp_path / "base"))
    tokenizer = make_tokenizer("bytes", "gemma")
    tokenizer.save_pretrained(base)
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": tokenizer.eos_token_id}))
    ctx = replace(ctx, base_dir=base)
    model = RoleModel(load_causal_lm(ctx.base_dir, torch.float32))
    model.add("policy", Full(), trainable=True)
    trained = Learner(model, {"policy": ctx.stage.train.optimizer}, {"policy": 2})
    commit_role(ctx, trained, "policy", {})
    written = json.loads((Path(ctx.artifact) / "generation_config.json").read_text())
    ends = tokenizer.convert_tokens_to_ids(["<end_of_turn>", tokenizer.eos_token])
    assert written == {"eos_token_id": ends}
