"""What a step tells of waste: prompts of one score, engines and learner without work, answers of older weights."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.rl_step import RlWorker, first_sync, make_run, pool_of, prompts_of, rl_step
from triptych.engines.base import RolloutRecord
from triptych.observe.log import read_metrics
from triptych.rollout.trajectory import Trajectory
from triptych.stages.rl import loop
from triptych.stages.rl.flat_groups import STEPS, FlatGroups, flat_share
from triptych.stages.rl.waiting import staleness, waiting

NAN = float("nan")
BY_NUMBER = {"name": "function", "function": "tests.support.reward_functions:by_number"}
"""The number of each answer's prompt: every group has one score."""
GRPO: dict[str, Any] = {"algorithm": {"name": "grpo"}, "kl": {"coef": 0}}


@pytest.mark.parametrize(
    ("groups", "scores", "share"),
    [
        ([0, 0, 1, 1, 2, 2, 3, 3], [1, 1, 0, 1, 0, 0, 2, 2], 0.75),
        ([0, 0, 1, 1], [1, NAN, 0, 0], 1.0),  # one answer is compared with none
        ([0, 0, 1, 1], [1, NAN, 0, NAN], None),
        ([0, 1, 0, 1], [1, 1, 2, 1], 0.5),
    ],
)
def test_a_group_is_flat_where_all_its_scores_are_one(
    groups: list[int], scores: list[float], share: float | None
) -> None:
    assert flat_share(groups, torch.tensor(scores)) == share


def test_flat_groups_are_said_after_so_many_steps_in_a_row_and_no_earlier() -> None:
    flat = FlatGroups()
    assert [flat.see(0.75) for _ in range(STEPS - 1)] == [None] * (STEPS - 1)
    assert flat.see(0.5) is None  # half is not most
    found = [flat.see(share) for share in [0.6, 1.0] * STEPS]
    assert [place for place, mean in enumerate(found) if mean is not None] == [STEPS - 1, 2 * STEPS - 1]
    assert found[STEPS - 1] == pytest.approx(0.8)
    assert all(flat.see(None) is None for _ in range(2 * STEPS))


def test_a_step_tells_the_share_of_prompts_of_one_score(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = make_run(tiny_model_dir, tmp_path / "grpo", rewards=[BY_NUMBER], missing_eos_penalty=0, **GRPO)
    run.prompts[1] = replace(run.prompts[1], fields={"number": 7})
    first_sync(run, 0)
    assert rl_step(run, 1)["flat_groups"] == 1.0
    alone = make_run(tiny_model_dir, tmp_path / "ppo")
    first_sync(alone, 0)
    assert "flat_groups" not in rl_step(alone, 1), "PPO compares no answers with each other"


def test_a_penalty_for_the_cut_is_part_of_the_score(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Equal rewards are no equal scores where one answer was cut by its length."""
    run = make_run(tiny_model_dir, tmp_path, rewards=[BY_NUMBER], missing_eos_penalty=1.0, **GRPO)
    run.prompts[1] = replace(run.prompts[1], fields={"number": 7})
    first_sync(run, 0)
    metrics = rl_step(run, 1)
    records = pool_of(run).records[-1]
    ends = [{one.finish_reason for one in records[at : at + 2]} for at in range(0, len(records), 2)]
    assert metrics["flat_groups"] == pytest.approx(sum(len(own) == 1 for own in ends) / len(prompts_of(run, 1)))


@pytest.mark.slow
def test_a_run_of_flat_steps_warns_with_the_share_and_what_helps(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("triptych.stages.rl.flat_groups.STEPS", 2)
    rollout = {"prompts_per_step": 1, "samples_per_prompt": 2, "sampling": {"max_new_tokens": 2}}
    terms = GRPO | {"rewards": [BY_NUMBER], "missing_eos_penalty": 0, "steps": 3, "rollout": rollout}
    run = make_run(tiny_model_dir, tmp_path, dtype=torch.float32, **terms)
    run.prompts[1] = replace(run.prompts[1], fields={"number": 7})
    with caplog.at_level(logging.WARNING):
        loop.fit(replace(run, heldout={}))
    [said] = [record.getMessage() for record in caplog.records if "all had one score" in record.getMessage()]
    assert "stage rl: in each of the last 2 steps" in said
    assert "100% of prompts" in said
    assert "algorithm.dynamic_sampling" in said
    assert [row["flat_groups"] for row in read_metrics(run.ctx.folder)] == [1.0] * 3


def test_engines_are_idle_where_they_do_not_sample(tiny_model_dir: Path, tmp_path: Path) -> None:
    run: RlWorker = make_run(tiny_model_dir, tmp_path)
    assert run.stage.rollout.engines == 2
    found = waiting(run, 6.0, {"sample": 4.0, "score": 1.0, "update": 5.0})
    assert found == {"engines_idle": pytest.approx(1 - 6 / 20), "learner_waits": 0.4}
    assert waiting(run, 25.0, {"sample": 10.0})["engines_idle"] == 0.0
    first_sync(run, 0)
    row = rl_step(run, 1)
    assert row["engines_idle"] == 1.0  # the fake pool says that it took no time
    whole = sum(value for name, value in row.items() if name.startswith("seconds_"))
    assert row["learner_waits"] == pytest.approx(row["seconds_sample"] / whole)


def test_answers_of_the_newest_weights_are_not_stale(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = make_run(tiny_model_dir, tmp_path)
    first_sync(run, 0)
    for step in (1, 2):
        row = rl_step(run, step)
        assert (row["staleness"], row["staleness_max"]) == (0.0, 0.0)


def test_answers_after_a_step_that_learned_nothing_are_of_the_newest_weights(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    terms: dict[str, Any] = {
        "algorithm": {"name": "grpo", "dynamic_sampling": 1},
        "kl": {"coef": 0},
        "missing_eos_penalty": 0,
    }
    run = make_run(tiny_model_dir, tmp_path, rewards=[BY_NUMBER], **terms)
    run.prompts[1] = replace(run.prompts[1], fields={"number": 7})
    first_sync(run, 0)
    rows = [rl_step(run, step) for step in (1, 2, 3)]
    assert [row["without_spread"] for row in rows] == [1.0] * 3
    assert [(row["staleness"], row["staleness_max"]) for row in rows] == [(0.0, 0.0)] * 3


def test_staleness_is_counted_token_by_token() -> None:
    """The newest weights are those of four updates."""
    records = [
        Trajectory.of(RolloutRecord("", (1,), (2,) * len(drawn), (-1.0,) * len(drawn), drawn, "stop", seed=0, engine=0))
        for drawn in ((4, 4), (2, 3, 4))
    ]
    assert staleness(4, records) == {"staleness": pytest.approx(3 / 5), "staleness_max": 2.0}
