"""Proximal policy optimisation: credit worked out by hand, and the columns that carry it into micro-batches."""

from typing import Any

import pytest
import torch

from triptych.algorithms.base import Algorithm, Credit, Scored
from triptych.algorithms.table import algorithm_of
from triptych.recipe import Rl

HALF = torch.tensor(0.5).log().item()


def _ppo(**terms: Any) -> Algorithm:
    stage = {
        "kind": "rl",
        "policy": "sft@1",
        "rewards": [{"stage": "reward@1"}],
        "data": {"train": {"path": "prompts.jsonl"}},
        "train": {"steps": 1},
    }
    return algorithm_of(Rl.model_validate(stage | terms))


def _scored(**fields: Any) -> Scored:
    """Two answers, of two tokens and of one."""
    old = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    known: dict[str, Any] = {
        "scores": torch.tensor([1.0, -1.0]),
        "groups": torch.tensor([0, 0]),
        "mask": torch.tensor([[True, True], [True, False]]),
        "truncated": torch.tensor([False, True]),
        "rollout": old,
        "old": old,
        "entropy": torch.zeros(2, 2),
        "reference": old,
        "values": torch.tensor([[0.5, 0.25], [0.0, 9.0]]),
    }
    return Scored(**known | fields)


def test_advantages_and_returns_are_those_worked_out_by_hand() -> None:
    credit = _ppo(algorithm={"gamma": 1.0, "lam": 0.5, "whiten": False}).credit(_scored(), kl_coef=0.1)
    last = 1.0 - 0.25
    first = 0.25 - 0.5 + 0.5 * last
    cut = -1.0 - 1.0  # the score, then the penalty for an answer that was cut
    torch.testing.assert_close(credit.advantages, torch.tensor([[first, last], [cut, 0.0]]))
    assert credit.returns is not None
    torch.testing.assert_close(credit.returns, torch.tensor([[first + 0.5, 1.0], [cut, 0.0]]))


def test_the_kl_penalty_is_weighed_by_the_coefficient_of_the_step() -> None:
    ppo = _ppo(algorithm={"whiten": False, "lam": 1.0})
    scored = _scored(reference=torch.tensor([[-1.0, -2.0], [-5.0, 0.0]]))
    none, some = ppo.credit(scored, kl_coef=0.0).advantages, ppo.credit(scored, kl_coef=0.25).advantages
    torch.testing.assert_close(some - none, torch.tensor([[0.0, 0.0], [-0.25 * 2.0, 0.0]]))


def test_whitened_advantages_have_mean_0_and_variance_1() -> None:
    scored = _scored()
    advantages = _ppo().credit(scored, kl_coef=0.1).advantages[scored.mask]
    assert advantages.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert advantages.var().item() == pytest.approx(1.0, abs=1e-4)


def test_weights_correct_for_what_engines_computed_differently() -> None:
    rollout = torch.tensor([[-1.0 - HALF, -2.0 + 2 * HALF], [-3.0, 0.0]])
    credit = _ppo(importance={"cap": 3.0}).credit(_scored(rollout=rollout), kl_coef=0.1)
    torch.testing.assert_close(credit.weights, torch.tensor([[0.5, 3.0], [1.0, 0.0]]))  # a ratio of 4 is capped


def test_a_micro_batch_carries_a_credit_without_a_critic_too() -> None:
    whole = torch.arange(6.0).reshape(2, 3)
    critic = Credit(whole, whole + 1, whole + 2, whole + 3, whole + 4)
    for credit in (critic, Credit(whole, whole + 1, whole + 2)):
        found = Credit.of_columns({"ids": whole} | credit.columns(), width=2)
        assert found.columns().keys() == credit.columns().keys()
        for name, values in credit.columns().items():
            assert torch.equal(found.columns()[name], values[:, :2])


def test_the_kl_of_answers_is_unknown_without_a_reference() -> None:
    assert _scored(reference=torch.tensor([[-1.5, -2.5], [-1.0, 0.0]])).kl == pytest.approx((0.5 + 0.5 - 2.0) / 2)
    assert _scored(reference=None).kl is None
