"""Dynamic sampling on the tiny model: which answers are asked for, and which are learned from."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests.support.rl_step import POLICY, RlWorker, first_sync, make_run, pool_of, prompts_of, rl_step
from triptych.rewards.base import Answer, Forward
from triptych.rewards.table import REWARDS


class Told:
    """Scores the answers to some prompts with 1, 2, ... and all others with 1."""

    def __init__(self, numbers: set[int]) -> None:
        self.numbers = numbers

    def score(self, answers: Sequence[Answer], forward: Forward) -> Tensor:
        seen: dict[int, int] = {}
        scores = []
        for answer in answers:
            number = answer.fields["number"]
            seen[number] = seen.get(number, 0) + 1
            scores.append(float(seen[number]) if number in self.numbers else 1.0)
        return torch.tensor(scores)


def run_of(folder: Path, home: Path, rounds: int | None) -> RlWorker:
    terms: dict[str, Any] = {"algorithm": {"name": "grpo", "dynamic_sampling": rounds}, "kl": {"coef": 0.0}}
    run = make_run(folder, home, missing_eos_penalty=0.0, minibatches=3, **terms)
    first_sync(run, 0)
    return run


def asked(run: RlWorker) -> list[list[str]]:
    """Leases of each call, the first of every prompt."""
    return [[request.lease for request in call[::2]] for call in pool_of(run).requests]


@pytest.mark.slow
def test_others_are_asked_in_place_of_groups_without_spread(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tiny_model_dir, tmp_path, rounds=3)
    first = [prompt.fields["number"] for prompt in prompts_of(run, 1)]
    others = set(range(5)) - set(first)
    monkeypatch.setitem(REWARDS, "model", lambda settings, roles: Told({first[0], *others}))
    metrics = rl_step(run, 1)
    # Two of three have no spread; both of the others that there are have one.
    assert asked(run) == [["0/0/0", "0/1/0", "0/2/0"], ["0+1/0/0", "0+1/1/0"]]
    told = {tuple(prompt.input_ids): prompt.fields["number"] for prompt in run.prompts}
    assert {told[request.prompt_ids] for request in pool_of(run).requests[1]} == others
    assert metrics["sampled"] == 10.0
    assert metrics["without_spread"] == pytest.approx(0.4)
    assert metrics["reward"] == pytest.approx((3 * 3 + 2 * 2) / 10)  # of every answer, learned from or not
    assert metrics["grad_norm"] > 0.0
    table = pq.read_table(Path(run.ctx.folder) / "rollouts" / "step-00000001.parquet").to_pydict()
    assert table["group"] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    again = run_of(tiny_model_dir, tmp_path / "again", rounds=3)
    rl_step(again, 1)
    assert pool_of(again).requests == pool_of(run).requests


@pytest.mark.slow
def test_a_step_in_which_no_group_has_spread_learns_nothing(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tiny_model_dir, tmp_path, rounds=0)
    monkeypatch.setitem(REWARDS, "model", lambda settings, roles: Told(set()))
    before = {name: p.detach().clone() for name, p in run.learner.model.parameters_of(POLICY).items()}
    metrics = rl_step(run, 1)
    assert asked(run) == [["0/0/0", "0/1/0", "0/2/0"]]
    assert metrics["without_spread"] == 1.0
    assert "policy_loss" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(torch.equal(p, before[name]) for name, p in run.learner.model.parameters_of(POLICY).items())
    monkeypatch.setitem(REWARDS, "model", lambda settings, roles: Told(set(range(5))))
    assert rl_step(run, 2)["grad_norm"] > 0.0  # and the run goes on


@pytest.mark.slow
def test_fewer_answers_than_minibatches_are_learned_from(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tiny_model_dir, tmp_path, rounds=0)
    monkeypatch.setitem(REWARDS, "model", lambda settings, roles: Told({prompts_of(run, 1)[1].fields["number"]}))
    metrics = rl_step(run, 1)
    assert metrics["without_spread"] == pytest.approx(4 / 6)
    assert run.learner.state().numbers["steps"] == {POLICY: 2}
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.slow
def test_without_dynamic_sampling_every_group_is_learned_from(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tiny_model_dir, tmp_path, rounds=None)
    monkeypatch.setitem(REWARDS, "model", lambda settings, roles: Told(set()))
    metrics = rl_step(run, 1)
    assert "without_spread" not in metrics
    assert metrics["grad_norm"] == 0.0
    assert run.learner.state().numbers["steps"] == {POLICY: 3}
