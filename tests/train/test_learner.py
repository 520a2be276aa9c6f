"""Numerics first: the gradient does not depend on how a batch is cut or padded, or on how many ranks share it."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from tests.support.gradient_cases import (
    CASES,
    PPO,
    TOLERANCE,
    assert_equal,
    gradients,
    language,
    make_learner,
    make_model,
    samples,
)
from triptych.errors import RunError
from triptych.forward.roles import BASE, RoleModel
from triptych.models.base import load_causal_lm
from triptych.recipe import Lora, Optimizer
from triptych.train.learner import MAX_BAD_STEPS, Learner
from triptych.train.tasks.forward import response_logprobs
from triptych.train.tasks.language import LanguageModeling
from triptych.train.tasks.rl import PolicyUpdate


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("parts", [2, 4, 8])
def test_gradient_does_not_depend_on_micro_batches(
    tiny_model_dir: Path, dtype: torch.dtype, case: str, parts: int
) -> None:
    objective, make = CASES[case]
    learner = make_learner(make_model(tiny_model_dir, dtype))
    whole = gradients(learner, objective, [make(list(range(8)), dtype)])
    size = 8 // parts
    cut = [make(list(range(start, start + size)), dtype) for start in range(0, 8, size)]
    assert_equal(gradients(learner, objective, [*cut, None]), whole, TOLERANCE[dtype])


@pytest.mark.parametrize("case", ["language", "pairs"])
def test_gradient_does_not_depend_on_the_padding_side(tiny_model_dir: Path, case: str) -> None:
    objective, make = CASES[case]
    learner = make_learner(make_model(tiny_model_dir, torch.float64))
    right = make(list(range(8)), torch.float64)
    order = torch.argsort(right["mask"], dim=1, stable=True)  # padding first, the rest in its order
    left = {name: column.gather(1, order) for name, column in right.items()}
    assert not torch.equal(left["mask"], right["mask"])
    assert_equal(gradients(learner, objective, [left]), gradients(learner, objective, [right]), 1e-10)


@pytest.mark.parametrize("settings", [{"packing": False}, {"loss_chunk": 3}, {"loss_chunk": None}], ids=str)
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("case", CASES)
def test_gradient_does_not_depend_on_layout_or_chunks(
    tiny_model_dir: Path, case: str, method: str, settings: dict[str, Any]
) -> None:
    objective, make = CASES[case]
    batch = make(list(range(8)), torch.float64)
    packed, other = (
        gradients(
            make_learner(make_model(tiny_model_dir, torch.float64, roles=(objective.role,), method=method, **chosen)),
            objective,
            [batch],
        )
        for chosen in ({}, settings)
    )
    assert_equal(other, packed, 1e-10)


@pytest.mark.parametrize("checkpointing", ["selective", "full"])
@pytest.mark.parametrize("case", CASES)
def test_gradient_does_not_depend_on_checkpointing(tiny_model_dir: Path, case: str, checkpointing: str) -> None:
    objective, make = CASES[case]
    batch = make(list(range(8)), torch.float64)
    plain, checkpointed = (
        gradients(make_learner(make_model(tiny_model_dir, torch.float64, **chosen)), objective, [batch])
        for chosen in cast("list[dict[str, Any]]", [{}, {"checkpointing": checkpointing}])
    )
    assert_equal(checkpointed, plain, 1e-10)


def test_roles_do_not_touch_each_other(tiny_model_dir: Path) -> None:
    learner = make_learner(make_model(tiny_model_dir, torch.float32))
    critic = {name: tensor.clone() for name, tensor in learner.model.parameters_of("critic").items()}
    flags = {name: p.requires_grad for name, p in learner.model.named_parameters()}
    learner.step(LanguageModeling("policy"), [language(list(range(8)), torch.float32)])
    for name, tensor in learner.model.parameters_of("critic").items():
        assert torch.equal(tensor, critic[name])
    assert flags == {name: p.requires_grad for name, p in learner.model.named_parameters()}


def test_a_copied_role_answers_bit_for_bit_and_unlike_the_base(tiny_model_dir: Path) -> None:
    learner = make_learner(make_model(tiny_model_dir, torch.float32))
    model = learner.model
    model.add("reference", Lora(r=4, alpha=8), trainable=False, weights=model.adapter("policy"))
    batch = samples(list(range(8)), torch.float32)

    def logprobs(role: str) -> Tensor:
        return learner.forward(role, lambda m, b: response_logprobs(m, b, 1.0), batch)

    reference = logprobs("reference")
    assert torch.equal(logprobs("policy"), reference)
    assert (logprobs(BASE) - reference).abs().max() > 1e-3
    learner.step(LanguageModeling("policy"), [language(list(range(8)), torch.float32)])
    assert torch.equal(logprobs("reference"), reference)
    assert not torch.equal(logprobs("policy"), reference)


def test_dropout_acts_in_training_alone_and_only_if_asked(tiny_model_dir: Path) -> None:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float64))
    model.add("policy", Lora(r=4, alpha=8, dropout=0.5), trainable=True)
    with torch.no_grad():
        for parameter in model.parameters_of("policy").values():
            parameter.normal_(std=0.1)
    batch = language(list(range(8)), torch.float64)
    objective = LanguageModeling("policy")

    def loss(learner: Learner) -> float:
        return learner.accumulate(objective, [batch])["loss"]

    with_dropout, without = (
        Learner(model, {"policy": Optimizer()}, {"policy": 1}, dropout=dropout) for dropout in (True, False)
    )
    assert loss(with_dropout) != loss(with_dropout)
    assert loss(without) == loss(without)
    loss(with_dropout)
    assert with_dropout.evaluate(objective, [batch])["loss"] == pytest.approx(loss(without), abs=1e-12)


def test_state_goes_on_exactly(tiny_model_dir: Path) -> None:
    def step(learner: Learner, k: int) -> float:
        return learner.step(LanguageModeling("policy"), [language([k, k + 1], torch.float32)]).metrics["loss"]

    straight = make_learner(make_model(tiny_model_dir, torch.float32))
    losses = [step(straight, k) for k in range(6)]
    first = make_learner(make_model(tiny_model_dir, torch.float32))
    assert [step(first, k) for k in range(3)] == losses[:3]
    state = first.state()
    tensors = {piece.name: piece.values.clone().view(piece.shape) for piece in state.slices}
    second = make_learner(make_model(tiny_model_dir, torch.float32))
    second.load_state(tensors, state.numbers)
    assert [step(second, k) for k in range(3, 6)] == losses[3:]


def test_steps_without_a_finite_gradient_are_skipped_then_end_the_run(tiny_model_dir: Path) -> None:
    learner = make_learner(make_model(tiny_model_dir, torch.float32))
    batch = samples(list(range(8)), torch.float32)
    batch["advantages"] = batch["advantages"].clone()
    batch["advantages"][0, 0] = float("inf")
    before = {name: tensor.clone() for name, tensor in learner.model.parameters_of("policy").items()}
    report = learner.step(PolicyUpdate("policy", PPO.policy_loss, 1.0), [batch])
    assert report.metrics["skipped"] == 1.0
    assert all(torch.equal(p, before[name]) for name, p in learner.model.parameters_of("policy").items())
    for _ in range(MAX_BAD_STEPS - 2):
        learner.step(PolicyUpdate("policy", PPO.policy_loss, 1.0), [batch])
    with pytest.raises(RunError, match=r"policy: 5 steps in a row .* first in .*lora"):
        learner.step(PolicyUpdate("policy", PPO.policy_loss, 1.0), [batch])
