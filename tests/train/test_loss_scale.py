"""float16's loss scale: the search for it ends no run, gradients that are finite at no scale do, a restart keeps it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from triptych.errors import RunError
from triptych.forward.roles import RoleModel
from triptych.models.base import load_causal_lm
from triptych.recipe import Lora, Optimizer
from triptych.train.batch import language_batch
from triptych.train.learner import Learner
from triptych.train.loss_scale import GROWTH_INTERVAL, LossScale
from triptych.train.strategies.dense import Dense
from triptych.train.tasks.language import LanguageModeling

BATCH = language_batch([([5, 9, 11, 30], [-100, -100, -100, 30])], 0)
OBJECTIVE = LanguageModeling("policy")


@pytest.fixture
def steep_dir(tiny_model_copy: Path) -> Path:
    """A base with steep logits: no value overflows in float16, scaled gradients do."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_copy)
    with torch.no_grad():
        model.model.norm.weight.mul_(64)
    model.save_pretrained(tiny_model_copy)
    return tiny_model_copy


def learner_of(folder: Path, dtype: torch.dtype = torch.float16, **settings: Any) -> Learner:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(folder, dtype), dtype)
    model.add("policy", Lora(r=4), trainable=True)
    return Learner(model, {"policy": Optimizer(lr=1e-3)}, {"policy": 20}, **settings)


def scale_of(learner: Learner) -> LossScale:
    assert isinstance(learner.strategy, Dense)
    return learner.strategy._scales["policy"]


def saved(learner: Learner) -> dict[str, Tensor]:
    return {piece.name: piece.values.clone().view(piece.shape) for piece in learner.state().slices}


def spoil(learner: Learner) -> None:
    """Let every gradient be no number, at any scale."""
    with torch.no_grad():
        next(iter(learner.model.parameters_of("policy").values())).fill_(torch.nan)


def test_the_search_for_a_scale_is_no_divergence(steep_dir: Path) -> None:
    learner = learner_of(steep_dir)
    reports = [learner.step(OBJECTIVE, [BATCH]).metrics for _ in range(20)]
    skipped = [bool(report["skipped"]) for report in reports]
    searched = sum(skipped)
    assert searched > 5  # more than max_bad_steps
    assert skipped == [True] * searched + [False] * (20 - searched)
    assert scale_of(learner).value == 65536 / 2**searched
    assert reports[0]["loss"] > 50
    assert reports[-1]["loss"] < 1


@pytest.mark.parametrize(("dtype", "searched"), [(torch.float16, 16), (torch.float32, 0)], ids=["fp16", "fp32"])
def test_gradients_that_are_finite_at_no_scale_end_the_run(
    tiny_model_dir: Path, dtype: torch.dtype, searched: int
) -> None:
    learner = learner_of(tiny_model_dir, dtype, max_bad_steps=3)
    spoil(learner)
    for _ in range(searched + 2):
        assert learner.step(OBJECTIVE, [BATCH]).metrics["skipped"] == 1
    with pytest.raises(RunError, match="policy: 3 steps in a row had a gradient that is not finite"):
        learner.step(OBJECTIVE, [BATCH])


def test_a_scale_that_was_lowered_keeps_the_count_of_bad_steps(tiny_model_dir: Path) -> None:
    """Neither search nor restart forgives gradients that were bad at the lowest scale."""
    learner = learner_of(tiny_model_dir, max_bad_steps=3)
    spoil(learner)
    scale_of(learner).load_state([1.0, 0.0])
    for _ in range(2):
        learner.step(OBJECTIVE, [BATCH])
    again = learner_of(tiny_model_dir, max_bad_steps=3)
    again.load_state(saved(learner), learner.state().numbers)
    with pytest.raises(RunError, match="3 steps in a row"):
        again.step(OBJECTIVE, [BATCH])


def test_a_restart_keeps_the_scale_and_its_finite_steps(tiny_model_dir: Path) -> None:
    learner = learner_of(tiny_model_dir)
    scale_of(learner).load_state([512.0, GROWTH_INTERVAL - 2])
    learner.step(OBJECTIVE, [BATCH])
    again = learner_of(tiny_model_dir)
    again.load_state(saved(learner), learner.state().numbers)
    assert scale_of(again).state() == [512.0, GROWTH_INTERVAL - 1]
    again.step(OBJECTIVE, [BATCH])
    assert scale_of(again).state() == [1024.0, GROWTH_INTERVAL]


def test_a_checkpoint_of_an_earlier_version_holds_the_scale_alone(tiny_model_dir: Path) -> None:
    learner = learner_of(tiny_model_dir)
    tensors = saved(learner) | {"policy/loss_scale": torch.tensor(256.0, dtype=torch.float64)}
    learner.load_state(tensors, {"steps": {"policy": 7}})
    assert scale_of(learner).state() == [256.0, 0.0]
    assert learner.state().numbers == {"steps": {"policy": 7}, "bad_steps": {"policy": 0}}


def test_a_scale_is_halved_down_to_one_and_says_so() -> None:
    scale = LossScale(enabled=True)
    assert [scale.shrink() for _ in range(17)] == [True] * 16 + [False]
    assert scale.value == 1
    for _ in range(GROWTH_INTERVAL):
        scale.grow()
    assert scale.value == 2
    off = LossScale(enabled=False)
    for _ in range(GROWTH_INTERVAL):
        off.grow()
    assert (off.value, off.shrink()) == (1, False)
