"""Ranked answers: the loss is the paper's, worked out by a plain loop over prompts."""

from pathlib import Path

import pytest
import torch

from tests.support.gradient_cases import make_learner, make_model, rankings
from triptych.train.tasks.forward import answer_logprob
from triptych.train.tasks.rrhf import RankedPreference


@pytest.mark.parametrize(("penalty", "sft_weight"), [(1.0, 1.0), (0.0, 0.5)])
def test_the_loss_is_the_formula(tiny_model_dir: Path, penalty: float, sft_weight: float) -> None:
    learner, batch = make_learner(make_model(tiny_model_dir, torch.float64)), rankings([0, 1, 2, 5], torch.float64)
    logps = learner.forward("policy", answer_logprob, batch)[:, 0]
    ranking = nll = 0.0
    right = pairs = 0
    for query in (0, 1, 2, 5):
        own = batch["query"] == query
        lengths, scores = batch["length"][own].tolist(), batch["score"][own].tolist()
        p = [logp / length**penalty for logp, length in zip(logps[own].tolist(), lengths, strict=True)]
        gaps = [p[i] - p[j] for i in range(len(p)) for j in range(len(p)) if scores[i] < scores[j]]
        ranking += sum(max(0.0, gap) for gap in gaps) / 4
        nll -= logps[own][0].item() / lengths[0] / 4
        right, pairs = right + sum(gap < 0 for gap in gaps), pairs + len(gaps)
    found = learner.evaluate(RankedPreference("policy", penalty, sft_weight), [batch])
    assert found["loss"] == pytest.approx(ranking + sft_weight * nll, rel=1e-12)
    assert found["ranking"] == pytest.approx(ranking, rel=1e-12)
    assert found["nll"] == pytest.approx(nll, rel=1e-12)
    assert found["accuracy"] == pytest.approx(right / pairs)
    assert pairs == 1 + 3 + 5 + 5


def test_the_worst_answer_is_the_last_of_its_prompt(tiny_model_dir: Path) -> None:
    learner, batch = make_learner(make_model(tiny_model_dir, torch.float64)), rankings([1, 0], torch.float64)
    logps = learner.forward("policy", answer_logprob, batch)[:, 0].tolist()  # three answers, then two
    found = learner.evaluate(RankedPreference("policy"), [batch])
    assert found["logps_chosen"] == pytest.approx((logps[0] + logps[3]) / 2, rel=1e-12)
    assert found["logps_rejected"] == pytest.approx((logps[2] + logps[4]) / 2, rel=1e-12)
