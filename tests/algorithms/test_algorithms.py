"""Every algorithm on small batches in float64: credit, loss and gradient against numbers worked out by hand."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from triptych.algorithms.base import Algorithm, Credit, Scored
from triptych.algorithms.table import ALGORITHMS, algorithm_of
from triptych.objectives.aggregation import Aggregation
from triptych.recipe import Rl
from triptych.recipe.algorithm import SETTINGS
from triptych.train.tasks.rl import KlLoss, PolicyUpdate, objectives

THREE = {
    "four answers of one token": ([1.0, 0.0, 0.0, 1.0], [0, 0, 0, 0], [1, 1, 1, 1]),
    "an answer of two tokens": ([6.0, 3.0], [0, 0], [2, 1]),
    "a group without spread among others": ([1.0, 2.0, 1.0, 0.0], [0, 1, 0, 1], [1, 1, 1, 1]),
}
"""Scores, groups and lengths."""
SCALED = ([0.866024, -0.866024, -0.866024, 0.866024], [0.707106, 0.707106, -0.707106], [0, 0.707106, 0, -0.707106])
EXPECTED = {
    "grpo": SCALED,
    "gspo": SCALED,
    "cispo": SCALED,
    "rloo": ([2 / 3, -2 / 3, -2 / 3, 2 / 3], [3, 3, -3], [0, 2, 0, -2]),
    # With gamma 0.5 the rewards-to-go of the second batch are 3, 6 and 3: mean 4, deviation the root of 3.
    "reinforce_pp": (
        [0.866025, -0.866025, -0.866025, 0.866025],
        [-0.577350, 1.154701, -0.577350],
        [0, 1.224745, 0, -1.224745],
    ),
}
"""Advantages of the valid tokens, row by row, of each batch."""

OLD, NEW = [-1.0, -1.0, -3.0], [-1.0 - math.log(2), -1.0, -3.0 + math.log(10)]  # ratios 0.5, 1, 10


def stage_of(name: str, settings: dict[str, Any], **terms: Any) -> Rl:
    stage = {
        "kind": "rl",
        "policy": "sft@1",
        "rewards": [{"stage": "reward@1"}],
        "data": {"train": {"path": "prompts.jsonl"}},
        "train": {"steps": 1},
        "algorithm": {"name": name, **settings},
    }
    return Rl.model_validate(stage | terms)


def of(name: str, **settings: Any) -> Algorithm:
    return algorithm_of(stage_of(name, settings))


def scored(scores: list[float], groups: list[int], lengths: list[int], **fields: Any) -> Scored:
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    zeros = torch.zeros(mask.shape, dtype=torch.float64)
    known: dict[str, Any] = {
        "scores": torch.tensor(scores, dtype=torch.float64),
        "groups": torch.tensor(groups),
        "mask": mask,
        "truncated": torch.zeros(len(scores), dtype=torch.bool),
        "rollout": zeros,
        "old": zeros,
        "entropy": zeros,
        "reference": zeros,
        "values": None,
    }
    return Scored(**known | fields)


def row(*xs: float) -> Tensor:
    return torch.tensor([xs], dtype=torch.float64)


def loss_and_gradient(algorithm: Algorithm, *advantages: float) -> tuple[float, list[float]]:
    """Sum over the three tokens of OLD and NEW, and its gradient."""
    logprobs = row(*NEW).requires_grad_()
    credit = Credit(row(*OLD), row(*advantages), torch.ones(1, 3, dtype=torch.float64))
    total, count, _ = algorithm.policy_loss(logprobs, torch.ones(1, 3, dtype=torch.bool), credit)
    assert count == 3
    total.backward()
    assert logprobs.grad is not None
    return total.item(), logprobs.grad.flatten().tolist()


def test_every_settings_model_has_its_algorithm() -> None:
    assert SETTINGS.keys() == ALGORITHMS.keys()


# Credit


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("batch", THREE)
def test_advantages_are_those_worked_out_by_hand(name: str, batch: str) -> None:
    found = scored(*THREE[batch])
    settings = {"gamma": 0.5} if name == "reinforce_pp" else {}
    credit = of(name, **settings).credit(found, kl_coef=0.1)
    expected = EXPECTED[name][list(THREE).index(batch)]
    assert credit.advantages[found.mask].tolist() == pytest.approx(expected, abs=1e-6)
    assert (credit.advantages[~found.mask] == 0).all()
    assert credit.returns is None


@pytest.mark.parametrize(("eps", "expected"), [(1e-6, 0.866024), (1e-4, 0.865875), (1e-9, 0.866025)])
def test_grpo_adds_eps_to_the_deviation(eps: float, expected: float) -> None:
    credit = of("grpo", eps=eps).credit(scored(*THREE["four answers of one token"]), kl_coef=0.0)
    assert credit.advantages[:, 0].tolist() == pytest.approx([expected, -expected, -expected, expected], abs=5e-7)


def test_dr_grpo_divides_by_no_deviation() -> None:
    credit = of("grpo", scale=False).credit(scored(*THREE["an answer of two tokens"]), kl_coef=0.0)
    assert credit.advantages.tolist() == [[1.5, 1.5], [-1.5, 0.0]]


@pytest.mark.parametrize(
    ("name", "kl", "expected"),
    [
        ("rloo", {}, [[3.0 - 0.2, 3.0 - 0.2], [-3.0 + 0.2, 0.0]]),  # 0.1 * (0.5 + 1.5) less for the first answer
        ("rloo", {"placement": "loss"}, [[3.0, 3.0], [-3.0, 0.0]]),
        ("grpo", {}, [[1.5, 1.5], [-1.5, 0.0]]),
        ("grpo", {"placement": "reward"}, [[1.4, 1.4], [-1.4, 0.0]]),
    ],
)
def test_the_kl_is_in_the_reward_of_an_answer_or_in_the_loss(
    name: str, kl: dict[str, Any], expected: list[list[float]]
) -> None:
    reference = torch.tensor([[-0.5, -1.5], [0.0, 7.0]], dtype=torch.float64)
    batch = scored(*THREE["an answer of two tokens"], reference=reference)
    stage = stage_of(name, {"scale": False} if name == "grpo" else {}, kl=kl)
    credit = algorithm_of(stage).credit(batch, kl_coef=0.1)
    torch.testing.assert_close(credit.advantages, torch.tensor(expected, dtype=torch.float64))
    in_loss = stage.kl.placement == "loss"
    assert (credit.reference is not None) == in_loss
    (update,) = objectives(stage, ("policy",), 0.1)
    assert isinstance(update, PolicyUpdate)
    assert update.kl == (KlLoss(0.1, "k3") if in_loss else None)


def test_reinforce_pp_takes_the_kl_off_every_token() -> None:
    reference = torch.tensor([[-2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    batch = scored(*THREE["an answer of two tokens"], reference=reference)
    credit = of("reinforce_pp").credit(batch, kl_coef=1.0)  # rewards -2 and 6, and 3: 4, 6 and 3 to go
    spread = math.sqrt(((4 - 13 / 3) ** 2 + (6 - 13 / 3) ** 2 + (3 - 13 / 3) ** 2) / 2)
    expected = [(value - 13 / 3) / spread for value in (4, 6, 3)]
    assert credit.advantages[batch.mask].tolist() == pytest.approx(expected)


def test_without_a_reference_nothing_is_taken_off() -> None:
    batch = scored(*THREE["an answer of two tokens"], reference=None)
    assert of("rloo").credit(batch, kl_coef=0.1).advantages.tolist() == [[3.0, 3.0], [-3.0, 0.0]]


def test_an_answer_that_was_cut_loses_its_penalty_in_every_group() -> None:
    batch = scored(*THREE["an answer of two tokens"], truncated=torch.tensor([False, True]))
    assert of("rloo").credit(batch, kl_coef=0.0).advantages.tolist() == [[4.0, 4.0], [-4.0, 0.0]]


def test_distillation_credits_a_token_with_the_teachers_log_ratio() -> None:
    old, teacher = (
        torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -3.0, 0.0]]),
        torch.tensor([[-0.5, -2.5, -1.5], [-2.0, -1.0, 0.0]]),
    )
    found = scored([4.0, -2.0], [0, 0], [3, 2], old=old.double(), teacher=teacher.double())
    settings = {"teacher": "other@1"}
    terms = {"rewards": [{"stage": "reward@1", "weight": 0.0}]}

    def advantages(scores: list[float], **more: float) -> list[float]:
        stage = stage_of("opd", settings | more, **terms)
        return algorithm_of(stage).credit(replace(found, scores=row(*scores)[0]), 0.0).advantages[found.mask].tolist()

    assert advantages([0.0, 0.0]) == pytest.approx([0.5, -0.5, -1.0, -1.0, 2.0])
    assert advantages([0.0, 0.0], gamma=0.5) == pytest.approx([0.0, -1.0, -1.0, 0.0, 2.0])
    assert advantages([4.0, -2.0]) == pytest.approx([4.5, 3.5, 3.0, -3.0, 0.0])
    assert found.teacher_kl == pytest.approx((1.0 - 1.0) / 2)


def test_the_critic_learns_returns_of_its_own_lambda() -> None:
    """With lambda 1 the returns are the rewards to come, whatever the advantages' lambda."""
    values = torch.tensor([[0.5, 0.25]], dtype=torch.float64)
    batch = scored([1.0], [0], [2], values=values)
    credit = of("ppo", lam=0.0, whiten=False, critic={"lam": 1.0}).credit(batch, kl_coef=0.0)
    assert credit.advantages.tolist() == [[0.25 - 0.5, 1.0 - 0.25]]
    assert credit.returns is not None
    assert credit.returns.tolist() == [[1.0, 1.0]]


def test_a_floor_leaves_tokens_out_of_the_loss_and_not_out_of_its_mean() -> None:
    rollout = torch.tensor([[-math.log(0.4), -math.log(0.8), -math.log(6)]], dtype=torch.float64)
    batch = scored([1.0], [0], [3], rollout=rollout, values=torch.zeros(1, 3, dtype=torch.float64))
    stage = stage_of("ppo", {"whiten": False}, importance={"floor": 0.5, "cap": 5.0})
    algorithm = algorithm_of(stage)
    credit = algorithm.credit(batch, kl_coef=0.0)
    torch.testing.assert_close(credit.weights, row(0, 0.8, 0))
    _, count, _ = algorithm.policy_loss(batch.old, batch.mask, credit)
    assert count == 3


# Losses: ratios 0.5, 1 and 10


@pytest.mark.parametrize("name", ["ppo", "grpo", "rloo", "reinforce_pp"])
def test_the_clipped_surrogate_of_three_tokens(name: str) -> None:
    total, gradient = loss_and_gradient(of(name, clip=0.2, dual_clip=3.0), 1, -1, -4)
    assert total == pytest.approx(12.5)  # -0.5 + 1 + 12
    assert gradient == pytest.approx([-0.5, 1.0, 0.0])
    assert loss_and_gradient(of(name, clip=0.2), 1, -1, -4)[0] == pytest.approx(-0.5 + 1 + 40)
    total, gradient = loss_and_gradient(of(name, clip=0.2, clip_high=0.28), -1, 1, 4)
    assert total == pytest.approx(0.8 - 1 - 1.28 * 4)
    assert gradient == pytest.approx([0.0, -1.0, 0.0])


def test_cispo_of_three_tokens_keeps_every_gradient() -> None:
    total, gradient = loss_and_gradient(of("cispo", clip=0.2, clip_high=None), 1, -1, -4)
    assert total == pytest.approx(-2.9930, abs=1e-4)  # SkyRL's test of the same data
    assert gradient == pytest.approx([-0.8, 1.0, 1.2 * 4])
    _, gradient = loss_and_gradient(of("cispo"), 1, -1, -4)  # no lower bound, at most 5
    assert gradient == pytest.approx([-0.5, 1.0, 5 * 4])


def test_gspo_of_three_tokens_has_one_ratio() -> None:
    ratio = 5 ** (1 / 3)  # geometric mean of 0.5, 1 and 10
    total, gradient = loss_and_gradient(of("gspo"), -2, -2, -2)
    assert total == pytest.approx(3 * 2 * ratio)
    assert gradient == pytest.approx([2 * ratio] * 3)
    total, gradient = loss_and_gradient(of("gspo"), 2, 2, 2)
    assert total == pytest.approx(-3 * 2 * (1 + 4e-4))
    assert gradient == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("name", ["gspo", "cispo"])
def test_what_stands_past_an_answer_changes_neither_loss_nor_gradient(name: str) -> None:
    found = []
    mask = torch.tensor([[True, True, False]])
    for garbage in (0.0, math.nan, math.inf):
        logprobs = row(-1.0, -2.0, garbage).requires_grad_()
        credit = Credit(row(-1.1, -2.0, garbage), row(1.0, 1.0, garbage), row(1.0, 1.0, garbage))
        total, count, metrics = of(name).policy_loss(logprobs, mask, credit)
        total.backward()
        assert logprobs.grad is not None
        found.append([total.item(), count.item(), *logprobs.grad[0].tolist(), *(m.item() for m in metrics.values())])
    assert found[0] == found[1] == found[2]


# From tokens to one number


@pytest.mark.parametrize(("kind", "mean"), [("token", 8 / 3), ("sequence", (1.5 + 5) / 2), ("constant", 8 / (2 * 4))])
def test_losses_of_tokens_become_one(kind: Any, mean: float) -> None:
    losses, mask = torch.tensor([[1.0, 2.0], [5.0, 9.0]]), torch.tensor([[True, True], [True, False]])
    aggregation = Aggregation(kind, longest=4)
    total = (losses * aggregation.shares(mask)).sum()
    assert (total / aggregation.divisor(torch.tensor([2, 1]))).item() == pytest.approx(mean)


@pytest.mark.parametrize(("kind", "gradient"), [("k2", 0.5), ("k3", 1 - math.exp(-0.5))])
def test_the_kl_in_the_loss_has_the_gradient_of_its_estimator(kind: Any, gradient: float) -> None:
    """At a log-ratio of 0.5; k2's is that of the KL itself, k3's is smaller."""
    logprobs = row(-1.0, 7.0).requires_grad_()
    total = KlLoss(2.0, kind).of(logprobs, row(-1.5, math.nan), row(0.25, 0.0))
    total.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.flatten().tolist() == pytest.approx([2.0 * 0.25 * gradient, 0.0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("ppo", "token"), ("rloo", "token"), ("reinforce_pp", "token"), ("cispo", "token"), ("grpo", "sequence")],
)
def test_the_policys_loss_is_aggregated_as_the_recipe_says(name: str, expected: str) -> None:
    for kind in ({}, {"aggregation": "constant"}):
        update = objectives(stage_of(name, kind), ("policy", "critic"))[0]
        assert isinstance(update, PolicyUpdate)
        assert update.aggregation == Aggregation(kind.get("aggregation", expected), 48)  # type: ignore[arg-type]
