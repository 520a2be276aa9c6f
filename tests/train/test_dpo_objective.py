"""Pairs of answers: what the policy starts at, and the formula of each loss."""

from pathlib import Path

import pytest
import torch

from tests.support.gradient_cases import make_learner, make_model, preferences
from triptych.forward.roles import BASE, RoleModel
from triptych.models.base import load_causal_lm
from triptych.recipe import Lora
from triptych.recipe.preference import Ipo, Sigmoid
from triptych.train.tasks.dpo import PairPreference, pair_logps

ROWS = list(range(8))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_a_new_adapter_gives_each_pair_a_log_ratio_of_exactly_0(tiny_model_dir: Path, dtype: torch.dtype) -> None:
    """Against the base and in the same cut, so that the loss is log 2 to the last bit of the precision."""
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(tiny_model_dir, dtype))
    model.add("policy", Lora(r=4, alpha=8), trainable=True)
    learner, batch = make_learner(model), preferences(ROWS, dtype)
    references = learner.forward(BASE, pair_logps, batch)
    assert torch.equal(learner.forward("policy", pair_logps, batch), references)
    batch |= dict(zip(("ref_chosen", "ref_rejected"), references.unbind(dim=1), strict=True))
    found = learner.evaluate(PairPreference("policy", Sigmoid()), [batch])
    assert found["loss"] == pytest.approx(0.6931471805599453, abs=1e-15)
    assert found["rewards_chosen"] == found["rewards_rejected"] == found["margin"] == 0
    assert found["accuracy"] == 0.5


def test_losses_are_their_formulas(tiny_model_dir: Path) -> None:
    learner, batch = make_learner(make_model(tiny_model_dir, torch.float64)), preferences(ROWS, torch.float64)
    chosen, rejected = learner.forward("policy", pair_logps, batch).unbind(dim=1)
    lengths = batch["length"].chunk(2)
    ratios = chosen - batch["ref_chosen"], rejected - batch["ref_rejected"]
    gap = ratios[0] - ratios[1]
    apart = ratios[0] / lengths[0] - ratios[1] / lengths[1]
    nll = -(chosen / lengths[0]).mean()
    expected = {
        PairPreference("policy", Sigmoid(beta=0.2)): -torch.nn.functional.logsigmoid(0.2 * gap).mean(),
        PairPreference("policy", Ipo(name="ipo", beta=0.2)): (gap - 2.5).square().mean(),
        PairPreference("policy", Ipo(name="ipo", beta=0.2, average=True)): (apart - 2.5).square().mean(),
        PairPreference("policy", Sigmoid(), 0.5): -torch.nn.functional.logsigmoid(0.1 * gap).mean() + 0.5 * nll,
    }
    for objective, value in expected.items():
        assert learner.evaluate(objective, [batch])["loss"] == pytest.approx(value.item(), rel=1e-12)
    found = learner.evaluate(PairPreference("policy", Sigmoid()), [batch])
    assert found["logps_chosen"] == pytest.approx(chosen.mean().item(), rel=1e-12)
    assert found["logps_rejected"] == pytest.approx(rejected.mean().item(), rel=1e-12)
    assert found["margin"] == pytest.approx(0.1 * gap.mean().item(), rel=1e-12)
