"""A step of every algorithm on the tiny model, in float64: which roles there are, and what one step changes."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.environment_runs import run_of
from tests.support.ranks import Ranks
from tests.support.rl_step import (
    CRITIC,
    POLICY,
    RlWorker,
    evaluate,
    first_sync,
    make_run,
    rl_step,
    steps_of_each,
)
from triptych.forward.roles import BASE
from triptych.recipe import REFERENCE, REWARD, TEACHER

OPTIMIZER = {"optimizer": {"lr": 0.01}}
TERMS: dict[str, dict[str, Any]] = {
    "ppo": {"algorithm": {"name": "ppo", "critic": OPTIMIZER}, "kl": {"coef": 0.05}},
    "grpo": {"algorithm": {"name": "grpo"}, "kl": {"coef": 0.05}},
    "dr_grpo": {"algorithm": {"name": "grpo", "scale": False, "aggregation": "constant"}, "kl": {"coef": 0.0}},
    "rloo": {"algorithm": {"name": "rloo"}, "kl": {"coef": 0.05}},
    "reinforce_pp": {"algorithm": {"name": "reinforce_pp"}, "kl": {"coef": 0.05}},
    "cispo": {"algorithm": {"name": "cispo"}, "kl": {"coef": 0.05, "kind": "k2"}},
    "gspo": {"algorithm": {"name": "gspo"}, "kl": {"coef": 0.0}},
    "opd": {"algorithm": {"name": "opd", "teacher": "other@1"}, "kl": {"coef": 0.0}},
    **{
        name: {"algorithm": {"name": "opd", "teacher": "other@1", "divergence": name}, "kl": {"coef": 0.0}}
        for name in ("reverse_kl", "forward_kl", "jsd")
    },
    "single rollout": {
        "algorithm": {"name": "ppo", "critic": OPTIMIZER | {"updates": 2, "lam": 1.0}},
        "kl": {"coef": 0.0},
        "importance": {"floor": 0.5, "cap": 2.0},
    },
}


@dataclass(frozen=True)
class Learned:
    """A run after a step of one minibatch, and what it measured."""

    run: RlWorker
    metrics: dict[str, float]
    before: dict[str, dict[str, Tensor]]

    def changed(self) -> set[str]:
        """Roles whose parameters are others than before."""
        model = self.run.learner.model
        return {
            role
            for role, before in self.before.items()
            if any(not torch.equal(now, before[name]) for name, now in model.parameters_of(role).items())
        }


def learned(folder: Path, home: Path, steps: int = 1, **terms: Any) -> Learned:
    run = make_run(folder, home, **terms)
    first_sync(run, 0)
    model = run.learner.model
    before = {role: {n: p.detach().clone() for n, p in model.parameters_of(role).items()} for role in model.trainable}
    for step in range(1, steps + 1):
        metrics = rl_step(run, step)
    return Learned(run, metrics, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", TERMS)
def test_a_step_of_one_minibatch_has_ratio_one(tiny_model_dir: Path, tmp_path: Path, name: str) -> None:
    found = learned(tiny_model_dir, tmp_path, **TERMS[name])
    metrics, stage = found.metrics, found.run.stage
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-12)
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-24)
    assert metrics["clipped"] == 0.0
    assert metrics["importance_bounded"] == 0.0
    assert metrics["importance_ess"] == pytest.approx(1.0, abs=1e-9)
    assert metrics["grad_norm"] > 0.0
    assert all(math.isfinite(value) for value in metrics.values())
    critic, reference = stage.algorithm.value_model is not None, stage.kl.coef > 0
    assert found.changed() == {POLICY} | ({CRITIC} if critic else set())
    others = {CRITIC: critic, REFERENCE: reference, TEACHER: stage.algorithm.teaching is not None}
    assert set(found.before) == {POLICY, REWARD} | {role for role, there in others.items() if there}
    assert ("value_loss" in metrics) == critic
    assert ("kl" in metrics) == ("kl_coef" in metrics) == ("heldout_kl" in evaluate(found.run, "one")) == reference
    assert ("divergence" in metrics) == ("distillation_loss" in metrics) == (stage.algorithm.distilled is not None)
    assert ("kl_loss" in metrics) == (reference and stage.kl.placement == "loss")


@pytest.mark.slow
def test_two_ranks_learn_by_every_algorithm_what_one_does(ranks: Ranks, tiny_model_dir: Path, tmp_path: Path) -> None:
    alone = steps_of_each(tiny_model_dir, tmp_path / "alone", "single", TERMS)
    for found in ranks.run(steps_of_each, tiny_model_dir, tmp_path / "both", "ddp", TERMS):
        for name, metrics in alone.items():
            assert found[name] == pytest.approx(metrics, rel=1e-9, abs=1e-9), name


@pytest.mark.slow
def test_distillation_brings_the_policy_to_the_teacher(tiny_model_dir: Path, tmp_path: Path) -> None:
    rollout = {"prompts_per_step": 5, "samples_per_prompt": 8, "sampling": {"max_new_tokens": 6, "temperature": 0.7}}
    recorded = [{"name": "model", "stage": "reward@1", "weight": 0.0}]
    learning: dict[str, Any] = {"rollout": rollout, "rewards": recorded, "optimizer": {"lr": 0.001}, "kl": {}}
    run = make_run(tiny_model_dir, tmp_path, algorithm={"name": "opd", "teacher": "other@1"}, **learning)
    first_sync(run, 0)
    metrics = [rl_step(run, step) for step in range(1, 17)]
    gaps = [row["teacher_kl"] / row["response_length"] for row in metrics]
    assert sum(gaps[-4:]) < 0.85 * sum(gaps[:4])
    assert all(row["reward"] == 0.0 and math.isfinite(row["reward_model"]) for row in metrics)
    assert evaluate(run, "after")["heldout_teacher_kl"] > 0.0


@pytest.mark.slow
def test_a_teacher_of_its_own_is_asked_for_the_drawn_tokens(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Its engines run the base here: so does the role without an adapter."""
    sampling = {"max_new_tokens": 6, "temperature": 1.0}
    rollout = {"prompts_per_step": 3, "samples_per_prompt": 2, "sampling": sampling}
    algorithm = {"name": "opd", "teacher": {"base": str(tiny_model_dir)}}
    terms: dict[str, Any] = {"algorithm": algorithm, "rollout": rollout, "evaluation": sampling, "kl": {}}
    found = learned(tiny_model_dir, tmp_path, **terms)
    samples = found.run.sample(found.run.prompts[:3], "again", found.run.stage.rollout.sampling)
    judged = found.run.teacher_logprobs(samples)
    torch.testing.assert_close(judged, found.run.logprobs(samples, BASE).float(), rtol=0, atol=1e-6)
    assert TEACHER not in found.run.learner.model.trainable
    assert math.isfinite(found.metrics["teacher_kl"])
    assert math.isfinite(evaluate(found.run, "after")["heldout_teacher_kl"])


def test_a_teacher_of_its_own_tells_nothing_of_what_an_environment_wrote(tiny_model_dir: Path, tmp_path: Path) -> None:
    algorithm = {"name": "opd", "teacher": {"base": str(tiny_model_dir)}}
    run = run_of(tiny_model_dir, tmp_path, arguments={"last": 0}, algorithm=algorithm)
    samples = run.sample(run.prompts[:3], "0", run.stage.rollout.sampling)
    assert not all(all(one.drawn) for one in samples.records)
    judged = run.teacher_logprobs(samples)
    assert judged is not None
    expected = run.logprobs(samples, BASE).masked_fill(~samples.mask, 0.0).float()  # at temperature 1 too
    torch.testing.assert_close(judged, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_the_critic_learns_alone_first_and_more_often(tiny_model_dir: Path, tmp_path: Path) -> None:
    terms: dict[str, Any] = {
        "algorithm": {"name": "ppo", "critic": OPTIMIZER | {"updates": 3, "warmup_steps": 1}},
        "kl": {"coef": 0.5, "target": 1.0, "horizon": 60},
    }
    first = learned(tiny_model_dir, tmp_path, minibatches=2, **terms)
    assert first.changed() == {CRITIC}
    assert first.run.learner.state().numbers["steps"] == {POLICY: 0, CRITIC: 6}
    assert "policy_loss" not in first.metrics
    assert first.run.kl_coef == 0.5  # the coefficient follows no policy that stands still
    second = rl_step(first.run, 2)
    assert first.changed() == {POLICY, CRITIC}
    assert first.run.learner.state().numbers["steps"] == {POLICY: 2, CRITIC: 12}
    assert second["kl_coef"] == 0.5
    assert first.run.kl_coef == pytest.approx(0.5 * (1 - 0.2 * 6 / 60))
