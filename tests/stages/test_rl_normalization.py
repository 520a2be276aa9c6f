"""Reward models that are normalised by the answers of the policy that a stage starts from."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tests.support.environment_runs import run_of as environment_run
from tests.support.ranks import Ranks
from tests.support.rl_step import RlWorker, first_sync, make_run, prompts_of, resume, rl_step, save, score_answers
from triptych.stages.recorder import Recorder
from triptych.stages.rl import normalization
from triptych.stages.rl.normalization import normalize_by_policy

BY_POLICY = {"stage": "reward@1", "normalized_by": "policy"}
PLAIN: dict[str, Any] = {"stage": "reward@1", "label": "plain", "weight": 0.0}


def run_of(folder: Path, home: Path, strategy: str = "single") -> RlWorker:
    """Two entries of one reward model: the second as it normalises itself."""
    run = make_run(folder, home, rewards=[BY_POLICY, PLAIN], strategy=strategy)
    first_sync(run, 0)
    return run


def constants_of(folder: Path, home: Path, strategy: str) -> tuple[float, float]:
    run = run_of(folder, home, strategy)
    normalize_by_policy(run)
    return run.constants["reward@1"].mean, run.constants["reward@1"].std


def test_the_policys_first_answers_have_mean_0_and_variance_1(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path)
    normalize_by_policy(run)
    samples = run.sample(prompts_of(run, 1), "normalization", run.stage.rollout.sampling)
    parts = score_answers(run, samples).parts
    scores, own = parts["model"].double(), parts["plain"].double()
    assert scores.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert scores.std(correction=0).item() == pytest.approx(1.0, abs=1e-6)
    torch.testing.assert_close(scores, (own - own.mean()) / own.std(correction=0), rtol=1e-6, atol=1e-6)


def test_constants_stay_while_the_policy_learns(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path)
    normalize_by_policy(run)
    first = run.constants["reward@1"]
    rl_step(run, 1)
    normalize_by_policy(run)
    assert run.constants == {"reward@1": first}
    samples = run.sample(prompts_of(run, 2), "2", run.stage.rollout.sampling)
    parts = score_answers(run, samples).parts
    torch.testing.assert_close(parts["model"], (parts["plain"] - first.mean) / first.std, rtol=1e-6, atol=1e-6)


def test_constants_survive_a_restart(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path)
    normalize_by_policy(run)
    save(run, cast(Recorder, SimpleNamespace(flush=lambda step: None)), 1)
    run.writer.wait()
    again = replace(run, constants={})
    assert resume(again) == 1
    assert again.constants == run.constants


def test_nothing_is_sampled_where_no_reward_model_asks_for_it(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tiny_model_dir, tmp_path)
    monkeypatch.setattr(normalization, "model_scores", None)
    normalize_by_policy(run)
    assert run.constants == {}


def test_answers_whose_environment_failed_are_left_out(tiny_model_dir: Path, tmp_path: Path) -> None:
    failing: dict[str, Any] = {"rewards": [BY_POLICY], "environment": {"calls": {"max_failed": 0.9}}}
    run = environment_run(tiny_model_dir, tmp_path / "one", "Failing", {"broken": 0}, **failing)
    run.prompts[:] = run.prompts[:3]
    normalize_by_policy(run)
    scores = score_answers(run, run.sample(prompts_of(run, 1), "normalization", run.stage.rollout.sampling))
    known = scores.total[scores.kept].double()
    assert len(known) == 4
    assert known.mean().item() == pytest.approx(0.0, abs=1e-6)
    assert known.std(correction=0).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.slow
def test_two_ranks_measure_what_one_does(ranks: Ranks, tiny_model_dir: Path, tmp_path: Path) -> None:
    alone = constants_of(tiny_model_dir, tmp_path / "alone", "single")
    for found in ranks.run(constants_of, tiny_model_dir, tmp_path / "both", "ddp"):
        assert found == pytest.approx(alone, rel=1e-9)
