"""Pairs: the gradient of every part of the loss is exact, and the members of an ensemble do not touch each other."""

from pathlib import Path

import pytest
import torch

from tests.support.gradient_cases import TOLERANCE, assert_equal, gradients, in_float64, make_learner
from triptych.forward.roles import RoleModel
from triptych.models.base import load_causal_lm
from triptych.models.heads import ScalarHead
from triptych.recipe import Lora, Optimizer, member_roles
from triptych.stages.supervised.reward import Ensemble, batch_of_pairs
from triptych.train.batch import Batch
from triptych.train.learner import Learner
from triptych.train.tasks.forward import sequence_scores
from triptych.train.tasks.reward import PairwiseReward

PAIRS = 8
OBJECTIVES = {"margin": PairwiseReward("reward"), "margin and centering": PairwiseReward("reward", centering=0.3)}


def make_model(folder: Path, dtype: torch.dtype, members: int = 1) -> RoleModel:
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(folder, dtype))
    for role in member_roles("reward", members):
        model.add(role, Lora(r=4, alpha=8), trainable=True, head=ScalarHead(model.hidden_size))
        with torch.no_grad():
            for name, parameter in model.parameters_of(role).items():
                if "lora_B" in name:  # zero at the start, which would hide lora_A's gradient
                    parameter.normal_(std=0.1)
    return in_float64(model) if dtype == torch.float64 else model


def make_batch(rows: list[int], dtype: torch.dtype, *, margin: bool = True) -> Batch:
    """Pairs of the given numbers, of unequal lengths and margins."""
    generator = torch.Generator().manual_seed(1)
    answers = [
        torch.randint(5, 300, (3 + (index * 5) % 7,), generator=generator).tolist() for index in range(2 * PAIRS)
    ]
    pairs = [
        {"chosen": answers[2 * row], "rejected": answers[2 * row + 1]} | ({"margin": 0.25 * row} if margin else {})
        for row in rows
    ]
    batch = batch_of_pairs(pairs, pad=0)
    return {name: column.to(dtype) if column.is_floating_point() else column for name, column in batch.items()}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("parts", [2, 8])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_the_gradient_does_not_depend_on_micro_batches(
    tiny_model_dir: Path, name: str, parts: int, dtype: torch.dtype
) -> None:
    learner = make_learner(make_model(tiny_model_dir, dtype))
    whole = gradients(learner, OBJECTIVES[name], [make_batch(list(range(PAIRS)), dtype)])
    size = PAIRS // parts
    cut = [make_batch(list(range(start, start + size)), dtype) for start in range(0, PAIRS, size)]
    assert_equal(gradients(learner, OBJECTIVES[name], [*cut, None]), whole, TOLERANCE[dtype])


def test_margin_and_centering_change_the_gradient(tiny_model_dir: Path) -> None:
    learner, rows = make_learner(make_model(tiny_model_dir, torch.float64)), list(range(PAIRS))
    plain = gradients(learner, PairwiseReward("reward"), [make_batch(rows, torch.float64, margin=False)])
    margin = gradients(learner, PairwiseReward("reward"), [make_batch(rows, torch.float64)])
    centered = gradients(learner, PairwiseReward("reward", centering=0.3), [make_batch(rows, torch.float64)])
    assert plain["head.bias"].abs().max() < 1e-12  # Bradley-Terry says nothing of the scores' level
    assert margin["head.bias"].abs().max() < 1e-12
    assert centered["head.bias"].abs().max() > 1e-3
    assert (plain["head.weight"] - margin["head.weight"]).abs().max() > 1e-3


def test_the_loss_is_the_formula(tiny_model_dir: Path) -> None:
    """-log sigmoid(gap - margin) + 0.3 (chosen + rejected)^2, mean over pairs."""
    learner = make_learner(make_model(tiny_model_dir, torch.float64))
    batch = make_batch(list(range(PAIRS)), torch.float64)
    chosen, rejected = learner.forward("reward", sequence_scores, batch).chunk(2)
    ranking = -torch.nn.functional.logsigmoid(chosen - rejected - batch["margin"])
    found = learner.evaluate(PairwiseReward("reward", centering=0.3), [batch])
    squared = (chosen + rejected).square()
    assert found["loss"] == pytest.approx((ranking + 0.3 * squared).mean().item(), rel=1e-12)
    assert found["squared_sum"] == pytest.approx(squared.mean().item(), rel=1e-12)
    assert found["margin"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-12)
    assert found["accuracy"] == (chosen > rejected).double().mean().item()


@pytest.mark.slow
def test_members_train_as_if_alone(tiny_model_dir: Path) -> None:
    batches: list[Batch | None] = [make_batch([row, row + 1], torch.float32) for row in range(0, PAIRS, 2)]
    optimizer = Optimizer(lr=1e-2)

    def trained(learner: Learner, objective: PairwiseReward) -> list[float]:
        return [learner.step(objective, batches).metrics["loss"] for _ in range(3)]

    roles = member_roles("reward", 2)
    together = Ensemble(
        make_model(tiny_model_dir, torch.float32, 2), dict.fromkeys(roles, optimizer), dict.fromkeys(roles, 3)
    )
    losses = trained(together, PairwiseReward("reward", others=roles[1:]))
    alone = []
    for role in roles:
        learner = Learner(make_model(tiny_model_dir, torch.float32, 2), {role: optimizer}, {role: 3})
        alone.append(trained(learner, PairwiseReward(role)))
        for name, parameter in learner.model.parameters_of(role).items():
            assert torch.equal(parameter, together.model.parameters_of(role)[name])
    assert alone[0] != alone[1]
    assert losses == pytest.approx([sum(step) / 2 for step in zip(*alone, strict=True)])


def test_an_ensemble_is_measured_by_its_mean(tiny_model_dir: Path) -> None:
    roles = member_roles("reward", 3)
    learner = Ensemble(
        make_model(tiny_model_dir, torch.float64, 3), dict.fromkeys(roles, Optimizer()), dict.fromkeys(roles, 1)
    )
    batch = make_batch(list(range(PAIRS)), torch.float64)
    found = learner.evaluate(PairwiseReward("reward", others=roles[1:]), [batch])
    scores = torch.stack([learner.forward(role, sequence_scores, batch) for role in roles])
    gaps = torch.sub(*scores.chunk(2, dim=1))
    assert found["margin"] == pytest.approx(gaps.mean().item(), rel=1e-12)
    assert found["accuracy"] == (gaps.mean(dim=0) > 0).double().mean().item()
    assert found["disagreement"] == pytest.approx(gaps.std(dim=0).mean().item(), rel=1e-12)
