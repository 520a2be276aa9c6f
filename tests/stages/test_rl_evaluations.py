"""Sets of held-out prompts, each measured in a way of its own, and a reward that training never sees."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import reward_functions
from tests.support.environment_runs import run_of
from tests.support.ranks import Ranks
from tests.support.rl_step import (
    RlWorker,
    comparable,
    evaluate,
    first_sync,
    make_run,
    pool_of,
    rl_step,
    score_answers,
    with_terms,
)
from triptych import storage
from triptych.data.encode import PromptExample
from triptych.errors import UserError
from triptych.recipe import Sampling
from triptych.stages.rl.evaluation import pass_at_k
from triptych.stages.rl.prompts import check_columns

HERE = "tests.support.reward_functions"
CALLS: dict[str, Any] = {"retries": 0, "timeout_s": 30.0, "max_failed": 0.5}
NUMBERED = {"name": "function", "function": f"{HERE}:by_number", "per_call": 1, "calls": CALLS}
LENGTHS = {"name": "function", "function": f"{HERE}:remembering"}
SHORT: dict[str, Any] = {"name": "length", "target": 1, "tolerance": 2}
"""0 for an answer of one token, -0.5 for two, -1 for more."""
SUMS: dict[str, Any] = {
    "data": {"path": "sums.jsonl"},
    "sampling": {"max_new_tokens": 9, "temperature": 0.5},
    "samples_per_prompt": 3,
    "rewards": [SHORT],
    "pass_at": [1, 2],
    "pass_from": -0.5,
}
TALES: dict[str, Any] = {"data": {"path": "tales.jsonl"}}


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path) -> RlWorker:
    """A run with two named sets beside the one without a name."""
    return make_run(tiny_model_dir, tmp_path, evaluations={"sums": SUMS, "tales": TALES})


def written(run: RlWorker, name: str) -> list[dict[str, Any]]:
    text = storage.read_bytes(storage.join(run.ctx.folder, "samples", f"{name}.jsonl")).decode()
    return [json.loads(line) for line in text.splitlines()]


def test_each_set_is_sampled_as_it_says_and_as_rollouts_are_where_it_does_not(run: RlWorker) -> None:
    sets = run.stage.heldout_sets
    assert list(sets) == ["heldout", "heldout_sums", "heldout_tales"]
    assert sets["heldout_sums"].sampling == Sampling(max_new_tokens=9, temperature=0.5, top_p=1.0)
    assert sets["heldout_tales"].sampling == run.stage.rollout.sampling
    assert [one.samples_per_prompt for one in sets.values()] == [2, 3, 2]
    evaluate(run, "before")
    leases = [[ask.lease for ask in asked] for asked in pool_of(run).requests]
    assert leases[0] == ["heldout/0/0", "heldout/0/1", "heldout/1/0", "heldout/1/1"]
    assert leases[1] == [f"heldout_sums/{prompt}/{copy}" for prompt in range(2) for copy in range(3)]
    seeds = [ask.seed for asked in pool_of(run).requests for ask in asked]
    assert len(set(seeds)) == len(seeds)


def test_a_set_with_a_name_changes_nothing_of_the_one_without(run: RlWorker, tiny_model_dir: Path) -> None:
    alone = make_run(tiny_model_dir, Path(run.ctx.run).parent / "alone")
    metrics, before = evaluate(run, "before"), evaluate(alone, "before")
    assert before.items() <= metrics.items()
    assert not any("sums" in name or "tales" in name or "watch" in name for name in before)
    assert {f"heldout_tales_{name.removeprefix('heldout_')}" for name in before} <= metrics.keys()


def test_a_set_is_scored_by_its_own_rewards_and_passes_by_hand(run: RlWorker) -> None:
    metrics = evaluate(run, "before")
    rows = written(run, "before.sums")
    scores = [-min(1.0, (row["tokens"] - 1) / 2) for row in rows]
    assert [row["reward"] for row in rows] == scores
    assert [row["group"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert metrics["heldout_sums_reward"] == pytest.approx(sum(scores) / 6)
    assert metrics["heldout_sums_reward_length"] == pytest.approx(sum(scores) / 6)
    right = [sum(score >= -0.5 for score in scores[at : at + 3]) for at in (0, 3)]
    assert metrics["heldout_sums_pass_at_1"] == pytest.approx(sum(right) / 6)
    two = {0: 0.0, 1: 2 / 3, 2: 1.0, 3: 1.0}  # of the three pairs of answers, those with a right one
    assert metrics["heldout_sums_pass_at_2"] == pytest.approx(sum(two[count] for count in right) / 2)
    kept = json.loads(storage.read_bytes(storage.join(run.ctx.folder, "evaluations", "before.json")))
    low, high = kept["intervals"]["heldout_sums_pass_at_1"]
    assert low <= metrics["heldout_sums_pass_at_1"] <= high
    assert kept["intervals"].keys() == {
        *("heldout_reward", "heldout_tales_reward", "heldout_sums_reward"),
        *("heldout_sums_pass_at_1", "heldout_sums_pass_at_2"),
    }


def test_prompts_with_fewer_scored_answers_than_k_are_left_out_of_pass_at_k() -> None:
    groups: dict[int, Sequence[float]] = {0: [1.0, 0.0, 0.0], 1: [1.0], 2: [0.0, 0.0]}
    assert pass_at_k(1, groups, 1.0).value == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert pass_at_k(2, groups, 1.0).value == pytest.approx((2 / 3 + 0) / 2)
    assert pass_at_k(3, groups, 1.0).value == 1.0


def test_a_score_that_32_bits_round_below_the_bar_reaches_it() -> None:
    rounded = float(torch.tensor(0.7) * torch.tensor(1.0))
    assert rounded < 0.7
    assert pass_at_k(1, {0: [rounded], 1: [0.69999]}, 0.7).value == 0.5


def test_what_never_ended_in_its_environment_is_measured_by_no_score(tiny_model_dir: Path, tmp_path: Path) -> None:
    environment = {"calls": {"max_failed": 0.9}}
    for name, watch in (("judge", {"judge": "vader"}), ("watch", {"watch": LENGTHS})):
        run = run_of(tiny_model_dir, tmp_path / name, "Failing", {"broken": 1}, environment=environment, **watch)
        run = replace(run, heldout={"heldout": run.prompts[1:3]})
        assert [prompt.fields["number"] for prompt in run.heldout["heldout"]] == [1, 2]
        metrics, rows = evaluate(run, "before"), written(run, "before")
        scores = [row[name] for row in rows]
        assert [score is None for score in scores] == [True, True, False, False]
        assert metrics[f"heldout_{name}"] == pytest.approx(sum(scores[2:]) / 2)


def test_held_out_metrics_are_reported_by_name(run: RlWorker) -> None:
    """A sweep may aim at whatever an evaluation measures, and at nothing that it does not."""
    run = with_terms(run, judge="vader")
    metrics = evaluate(run, "before")
    assert {f"heldout_{name}" for name in run.stage.reports()} <= metrics.keys()
    assert "sums_pass_at_2" in run.stage.reports()


# The watch


def test_a_watch_is_measured_on_held_out_answers_and_never_learned_from(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reward_functions, "calls", [])
    run = make_run(tiny_model_dir, tmp_path / "watched", watch=LENGTHS, evaluations={"sums": SUMS})
    plain = make_run(tiny_model_dir, tmp_path / "plain", evaluations={"sums": SUMS})
    measured, without = evaluate(run, "before"), evaluate(plain, "before")
    assert len(reward_functions.calls) == 2  # one for each set
    rows = {name: written(run, name) for name in ("before", "before.sums")}
    for name, split in (("before", "heldout"), ("before.sums", "heldout_sums")):
        scores = [float(len(row["response"])) for row in rows[name]]
        assert [row["watch"] for row in rows[name]] == scores
        assert measured[f"{split}_watch"] == pytest.approx(sum(scores) / len(scores))
    assert {name: value for name, value in measured.items() if not name.endswith("_watch")} == without
    for one in (run, plain):
        first_sync(one, 0)
    steps = [comparable(rl_step(one, 1)) for one in (run, plain)]
    assert steps[0] == steps[1]
    assert len(reward_functions.calls) == 2


def test_a_reward_model_that_watches_has_a_role_of_its_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = make_run(tiny_model_dir, tmp_path, watch={"stage": "other@1"}, rewards=[NUMBERED])
    assert run.stage.measuring_models == ("other@1",)
    assert run.measuring_roles == {"other@1": ("measuring",)}
    assert [role.name for role in run.stage.roles({})] == ["policy", "reference", "critic", "measuring"]
    assert "measuring" not in run.learner.model.trainable or not run.learner.model.trainable["measuring"]
    run = replace(run, heldout={"heldout": run.prompts[2:4]})
    metrics = evaluate(run, "before")
    samples = run.sample(run.heldout["heldout"], "heldout", run.stage.evaluation)
    watch = run.watch
    assert watch is not None
    assert metrics["heldout_watch"] == pytest.approx(float(score_answers(run, samples, watch).total.mean()), abs=1e-6)


def test_a_set_shares_the_role_of_a_reward_model_that_is_learned_from(tiny_model_dir: Path, tmp_path: Path) -> None:
    own = {"data": {"path": "own.jsonl"}, "rewards": [{"stage": "reward@1", "weight": 2.0}]}
    run = make_run(tiny_model_dir, tmp_path, evaluations={"own": own})
    assert run.measuring_roles == {}
    metrics = evaluate(run, "before")
    assert metrics["heldout_own_reward"] == pytest.approx(2 * metrics["heldout_own_reward_model"])


def test_what_a_watch_fails_to_score_is_left_out_of_it_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = make_run(tiny_model_dir, tmp_path, watch=NUMBERED)
    run = replace(run, heldout={"heldout": run.prompts[1:3]})
    metrics = evaluate(run, "before")
    assert metrics["heldout_watch"] == 2.0  # the prompt with the number 1 has no score
    assert metrics["heldout_reward_failed"] == 0.0
    assert [row["watch"] for row in written(run, "before")] == [None, None, 2.0, 2.0]


def test_a_column_that_a_set_lacks_is_named_before_anything_is_sampled(run: RlWorker) -> None:
    rows = [PromptExample([50], {"number": 1})]
    watching = with_terms(run, watch={"name": "gsm8k"}).ctx
    check_columns(watching, "train", rows)
    with pytest.raises(UserError, match=r"rl\.watch \(gsm8k\): 1 of 1 rows of data\.heldout have no column 'answer'"):
        check_columns(watching, "heldout", rows)
    own = with_terms(run, evaluations={"sums": SUMS | {"rewards": [{"name": "gsm8k"}], "pass_from": None}}).ctx
    with pytest.raises(UserError, match=r"evaluations\.sums\.rewards\.0 \(gsm8k\): .* of evaluations\.sums\.data have"):
        check_columns(own, "heldout_sums", rows)


def test_a_watch_that_cannot_be_had_is_told_by_its_field(run: RlWorker) -> None:
    away = {"name": "function", "function": "no_such_module_of_anyone:f"}
    with pytest.raises(UserError, match=r"stages\.rl\.watch\.function: no_such_module_of_anyone:f cannot be imported"):
        with_terms(run, watch=away).check_rewards()


def measured_on(folder: Path, home: Path, strategy: str) -> tuple[dict[str, float], int]:
    """An evaluation of all sets on a rank, and how often it asked the watch."""
    reward_functions.calls.clear()
    terms: dict[str, Any] = {"watch": LENGTHS, "evaluations": {"sums": SUMS}}
    run = make_run(folder, home, strategy=strategy, **terms)
    return evaluate(run, "before"), len(reward_functions.calls)


@pytest.mark.slow
def test_two_ranks_measure_what_one_does_and_the_first_alone_asks_the_watch(
    ranks: Ranks, tiny_model_dir: Path, tmp_path: Path
) -> None:
    alone, _ = measured_on(tiny_model_dir, tmp_path / "alone", "single")
    first, second = ranks.run(measured_on, tiny_model_dir, tmp_path / "ranks", "ddp")
    assert first[0] == pytest.approx(alone, abs=1e-9)
    assert second[0] == pytest.approx(alone, abs=1e-9)
    assert (first[1], second[1]) == (2, 0)


def test_a_set_of_fewer_answers_is_played_with_the_rows_of_its_own_prompts(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    one = {"data": {"path": "plays.jsonl"}, "samples_per_prompt": 1, "rewards": [{"name": "environment"}]}
    run = run_of(tiny_model_dir, tmp_path, arguments={"last": 1}, evaluations={"plays": one})
    prompts = [PromptExample([5, 6 + number], {"number": number}) for number in range(3)]
    found = replace(run, heldout={"heldout_plays": prompts})
    metrics = evaluate(found, "after")
    assert [row["reward"] for row in written(found, "after.plays")] == [6.0, 3.0, 6.0]
    assert metrics["heldout_plays_reward_environment"] == 5.0
