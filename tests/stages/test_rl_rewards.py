"""Rewards within a step of the tiny model: sums, parts, and answers that have no score."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow.parquet as pq
import pytest
import torch

from tests.support.ranks import Ranks
from tests.support.rl_step import (
    CRITIC,
    POLICY,
    RlWorker,
    Samples,
    comparable,
    evaluate,
    first_sync,
    make_run,
    pool_of,
    resume,
    rl_step,
    samples_of,
    save,
    score_answers,
    with_terms,
)
from triptych.data.encode import PromptExample
from triptych.engines.base import RolloutRecord
from triptych.errors import RunError, UserError
from triptych.objectives.running import RunningMoments
from triptych.recipe import Recipe, RecipeError, Rl, load_recipe
from triptych.stages.recorder import Recorder
from triptych.stages.rl import step as steps
from triptych.stages.rl.prompts import check_columns
from triptych.stages.rl.rewarding import Rewarded, learned_scores

MODEL: dict[str, Any] = {"stage": "reward@1"}
CALLS: dict[str, Any] = {"retries": 0, "timeout_s": 30.0, "max_failed": 0.5}
HERE = "tests.support.reward_functions"
NUMBERED = {"name": "function", "function": f"{HERE}:by_number", "per_call": 1, "calls": CALLS}
"""The number of each answer's prompt; number 1 has none."""


RECORD = RolloutRecord("", (50, 60), (70,), (-1.0,), (0,), "stop", seed=0, engine=0)


@pytest.fixture(scope="module")
def still(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RlWorker:
    """A run that no test changes."""
    return make_run(_tiny_model, tmp_path_factory.mktemp("still"))


def sampled(run: RlWorker) -> Samples:
    """Two answers to each of prompts 0, 1 and 2."""
    return run.sample(run.prompts[:3], "0", run.stage.rollout.sampling)


def test_scores_are_summed_by_their_weights_and_kept_by_their_labels(still: RlWorker) -> None:
    long = {"name": "length", "target": 1, "tolerance": 100, "weight": -2.0, "label": "short"}
    seen = {"name": "length", "limit": 4, "cache": 4, "weight": 0.0}
    samples = sampled(still)
    model = score_answers(still, samples).total
    found = score_answers(with_terms(still, rewards=[MODEL | {"weight": 0.5}, long, seen]), samples)
    lengths = [len(record.response_ids) for record in samples.records]
    assert list(found.parts) == ["model", "short", "length_2"]
    assert torch.equal(found.parts["model"], model)
    assert found.parts["short"].tolist() == pytest.approx([-(n - 1) / 100 for n in lengths])
    assert found.parts["length_2"].tolist() == pytest.approx([-min(1.0, n / 4) for n in lengths])
    expected = [0.5 * score + 2.0 * (n - 1) / 100 for score, n in zip(model.tolist(), lengths, strict=True)]
    assert found.total.tolist() == pytest.approx(expected, abs=1e-7)


def test_one_reward_model_of_weight_one_gives_its_own_scores_bit_for_bit(still: RlWorker) -> None:
    found = score_answers(still, sampled(still))
    assert torch.equal(found.total, found.parts["model"])
    assert found.total.dtype == found.parts["model"].dtype
    assert found.kept == list(range(6))


def test_an_answer_that_no_reward_judges_has_no_score(still: RlWorker) -> None:
    nan = math.nan
    parts = {"a": torch.tensor([1.0, nan, nan, 2.0]), "b": torch.tensor([nan, 3.0, nan, nan])}
    found = Rewarded(parts, [1.0, 2.0], torch.tensor([False, False, False, True]))
    assert found.total[:2].tolist() == [1.0, 6.0]
    assert found.total[2:].isnan().all()
    assert found.kept == [0, 1]
    assert found.metrics() == {
        "reward": 3.5,
        "reward_std": pytest.approx(12.5**0.5),
        "reward_a": 1.5,
        "reward_b": 3.0,
        "reward_failed": 2.0,
    }


def test_two_reward_models_have_roles_of_their_own(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = make_run(tiny_model_dir, tmp_path, rewards=[MODEL, {"stage": "reward@2", "weight": 3.0}])
    assert run.reward_roles == [("reward",), ("reward_2",)]
    with torch.no_grad():
        dict(run.learner.model.heads["reward_2"].named_parameters())["bias"].add_(1.0)
    found = score_answers(run, sampled(run))
    assert list(found.parts) == ["model", "model_2"]
    torch.testing.assert_close(found.parts["model_2"], found.parts["model"] + 1.0)
    torch.testing.assert_close(found.total, found.parts["model"] + 3.0 * found.parts["model_2"])


def test_answers_without_a_score_are_left_out_of_everything_but_the_record(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = make_run(tiny_model_dir, tmp_path, rewards=[NUMBERED], minibatches=2)
    first_sync(run, 0)
    monkeypatch.setattr(steps, "prompts_of", lambda worker, step: worker.prompts[:3])
    learned: list[list[int]] = []
    counts: list[tuple[Any, ...]] = []
    update = steps.update

    def spy(worker: RlWorker, step: int, samples: Samples, credit: Any) -> dict[str, float]:
        learned.append(list(samples.groups))
        counts.append((len(samples.records), *(len(column) for column in credit.columns().values())))
        return update(worker, step, samples, credit)

    monkeypatch.setattr(steps, "update", spy)
    with caplog.at_level(logging.WARNING):
        metrics = rl_step(run, 1)
    assert learned == [[0, 0, 2, 2]], "both answers of number 1 are gone, the other groups are whole"
    assert set(counts[0]) == {4}
    assert metrics["reward_failed"] == 2.0
    assert metrics["reward"] == metrics["reward_function"] == 1.0  # of 0, 0, 2, 2
    assert metrics["tokens"] == sum(len(record.response_ids) for record in pool_of(run).records[0])
    table = pq.read_table(Path(run.ctx.folder) / "rollouts" / "step-00000001.parquet").to_pydict()
    assert table["score"] == table["reward_function"] == [0.0, 0.0, None, None, 2.0, 2.0]
    assert "rewards.0 (function): no score of 2 of 6 answers" in caplog.text
    assert "no judgement of number one" in caplog.text
    assert repr(run.texts([run.prompts[1].input_ids])[0]) in caplog.text
    assert all(math.isfinite(value) for value in metrics.values())


def test_more_failures_than_allowed_stop_the_run_by_the_rewards_name(still: RlWorker) -> None:
    strict = NUMBERED | {"calls": CALLS | {"max_failed": 0.3}}
    run = with_terms(still, rewards=[MODEL, strict])
    with pytest.raises(RunError, match=r"rewards\.1 \(function\): no score of 2 of 6 answers, and calls\.max_failed"):
        score_answers(run, sampled(run))
    score_answers(with_terms(still, rewards=[MODEL, strict | {"calls": CALLS | {"max_failed": 0.34}}]), sampled(still))


def test_a_step_without_any_score_stops(still: RlWorker) -> None:
    nobody = {"name": "function", "function": f"{HERE}:some_are_none", "calls": CALLS}
    run = replace(with_terms(still, rewards=[nobody]), reward_roles=[])
    samples = sampled(run)
    texts = ["none"] * len(samples.records)
    object.__setattr__(run, "texts", lambda sequences: texts)
    with pytest.raises(RunError, match="none of 6 answers has a score"):
        score_answers(run, samples)


def test_fewer_scores_than_minibatches_make_a_minibatch_each(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tiny_model_dir, tmp_path, rewards=[NUMBERED], minibatches=6)
    first_sync(run, 0)
    run.prompts[:] = run.prompts[:3]
    sizes: list[int] = []
    cut = Samples.micro_batches

    def spy(samples: Samples, learner: Any, rows: Any = None, columns: Any = None) -> Any:
        if columns:
            sizes.append(len(rows))
        return cut(samples, learner, rows, columns)

    monkeypatch.setattr(Samples, "micro_batches", spy)
    rl_step(run, 1)
    assert sizes == [1, 1, 1, 1]


def test_heldout_answers_without_a_score_are_counted_and_left_out_of_means(still: RlWorker) -> None:
    run = replace(with_terms(still, rewards=[NUMBERED]), reward_roles=[], heldout={"heldout": still.prompts[1:3]})
    metrics = evaluate(run, "rewards")
    assert metrics["heldout_reward"] == metrics["heldout_reward_function"] == 2.0
    assert metrics["heldout_reward_failed"] == 2.0


def test_what_cannot_be_imported_is_told_by_its_field(still: RlWorker) -> None:
    run = with_terms(still, rewards=[MODEL, {"name": "function", "function": "no_such_module_of_anyone:f"}])
    with pytest.raises(UserError, match=r"stages\.rl\.rewards\.1\.function: no_such_module_of_anyone:f cannot be"):
        run.check_rewards()


def without_a_model(folder: Path, home: Path, strategy: str) -> tuple[dict[str, float], list[float], int]:
    """A step without a reward model on a rank: its metrics, the scores, and how often it called the function."""
    from tests.support import reward_functions

    reward_functions.calls.clear()
    remembering = {"name": "function", "function": f"{HERE}:remembering", "calls": CALLS}
    run = make_run(folder, home, strategy=strategy, rewards=[remembering, NUMBERED | {"label": "numbered"}])
    first_sync(run, 0)
    run.prompts[:] = run.prompts[:3]
    metrics = rl_step(run, 1)
    scores = score_answers(run, sampled(run)).total.nan_to_num(-9.0).tolist()
    return comparable(metrics), scores, len(reward_functions.calls)


def test_without_a_reward_model_policy_and_critic_learn(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = make_run(tiny_model_dir, tmp_path, rewards=[NUMBERED])
    assert list(run.learner.model.trainable) == [POLICY, "reference", CRITIC]
    first_sync(run, 0)
    before = {role: _flat(run, role) for role in (POLICY, CRITIC)}
    metrics = rl_step(run, 1)
    assert math.isfinite(metrics["value_loss"])
    assert all(not torch.equal(_flat(run, role), before[role]) for role in before)


@pytest.mark.slow
def test_the_first_rank_alone_asks_and_both_get_the_same(ranks: Ranks, tiny_model_dir: Path, tmp_path: Path) -> None:
    alone, scores, _ = without_a_model(tiny_model_dir, tmp_path / "alone", "single")
    first, second = ranks.run(without_a_model, tiny_model_dir, tmp_path / "two", "ddp")
    assert first[0] == pytest.approx(second[0])
    assert first[0] == pytest.approx(alone, rel=1e-9, abs=1e-9)
    assert first[1] == second[1]
    assert len(scores) == len(first[1])
    assert (first[2], second[2]) == (2, 0)


def _flat(run: RlWorker, role: str) -> torch.Tensor:
    return torch.cat([p.detach().flatten().clone() for p in run.learner.model.parameters_of(role).values()])


def test_prompts_without_a_rewards_column_are_refused_before_anything_is_sampled(still: RlWorker) -> None:
    run = with_terms(still, rewards=[MODEL, {"name": "gsm8k", "answer": "right"}])
    prompts = [PromptExample([1], {"right": 1})] * 9 + [PromptExample([1], {"wrong": 1})]
    check_columns(run.ctx, "train", prompts)  # a tenth may fail
    with pytest.raises(UserError, match=r"rewards\.1 \(gsm8k\): 2 of 11 rows of data\.train have no column 'right'"):
        check_columns(run.ctx, "train", [*prompts, PromptExample([1], {"right": None})])


def test_prompts_that_are_no_rows_of_a_task_are_refused_before_anything_is_sampled(still: RlWorker) -> None:
    run = with_terms(still, rewards=[{"name": "reasoning_gym"}])
    with pytest.raises(
        UserError, match=r"rewards\.0 \(reasoning_gym\): 1 of 1 rows of data\.train have no column 'metadata'"
    ):
        check_columns(run.ctx, "train", [PromptExample([1], {"answer": "8"})])


def test_tasks_that_run_what_the_policy_writes_are_refused_unless_the_recipe_lets_them(still: RlWorker) -> None:
    row = PromptExample([1], {"question": "?", "answer": "1", "metadata": {"source_dataset": "countdown"}})
    run = with_terms(still, rewards=[{"name": "reasoning_gym"}])
    with pytest.raises(
        UserError, match=r"rewards\.0 \(reasoning_gym\): the rule of countdown runs .* run_answers: true"
    ):
        check_columns(run.ctx, "train", [row])
    check_columns(with_terms(still, rewards=[{"name": "reasoning_gym", "run_answers": True}]).ctx, "train", [row])


# What the algorithm gets


def test_scores_are_normalised_by_all_steps_up_to_now_and_go_on_after_a_restart(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """1 and 3, then 5 and 7: mean 2, deviation 1; then mean 4, deviation sqrt(5)."""
    run = make_run(tiny_model_dir, tmp_path, normalize_scores=True, missing_eos_score=-2.0)
    samples = samples_of([RECORD, RECORD])
    assert learned_scores(run, samples, _of([1.0, 3.0])).tolist() == [-1.0, 1.0]
    save(run, cast(Recorder, SimpleNamespace(flush=lambda step: None)), 1)
    run.writer.wait()
    again = replace(run, running=RunningMoments())
    assert resume(again) == 1
    expected = pytest.approx([1.0 / 5**0.5, 3.0 / 5**0.5])
    assert learned_scores(again, samples, _of([5.0, 7.0])).tolist() == expected
    assert learned_scores(run, samples, _of([5.0, 7.0])).tolist() == expected


def test_an_answer_that_was_cut_has_the_fixed_score(still: RlWorker) -> None:
    run = with_terms(still, missing_eos_score=-2.0, missing_eos_penalty=0.0)
    samples = samples_of([RECORD, replace(RECORD, finish_reason="length")])
    assert learned_scores(run, samples, _of([1.0, 3.0])).tolist() == [1.0, -2.0]
    assert learned_scores(still, samples, _of([1.0, 3.0])).tolist() == [1.0, 3.0]


def _of(scores: list[float]) -> Rewarded:
    return Rewarded({"model": torch.tensor(scores)}, [1.0], torch.zeros(len(scores), dtype=torch.bool))


# Recipes


def load(three_stages: Path, rewards: Sequence[dict[str, Any]], *more: str) -> Recipe:
    return load_recipe(three_stages, [f"stages.ppo.rewards={json.dumps(list(rewards))}", *more])


def test_a_recipe_without_a_reward_model_has_no_role_for_one(three_stages: Path) -> None:
    recipe = load(three_stages, [{"name": "gsm8k"}, {"name": "format", "pattern": "x", "weight": 0.5}])
    stage = recipe.trained["ppo"]
    assert [role.name for role in stage.roles(recipe.stages)] == ["policy", "reference", "critic"]
    assert stage.roles(recipe.stages)[2].method == stage.roles(recipe.stages)[0].method
    assert [reference.field for reference in stage.references()] == [("policy",)]


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([], "stages.ppo.rewards"),
        ([{"name": "guess"}], "stages.ppo.rewards.0.name"),
        ([{"name": "format", "pattern": "("}], "stages.ppo.rewards.0: pattern '(' is no regular expression"),
        ([{"name": "length", "limit": 9}], "stages.ppo.rewards.0: give `limit` and `cache`, or `target`"),
        ([{"name": "length", "limit": 9, "cache": 3, "target": 1}], "stages.ppo.rewards.0: give `limit`"),
        ([{"name": "length", "limit": 3, "cache": 4}], "stages.ppo.rewards.0: cache: 4, and the limit is 3"),
        ([{"name": "length", "limit": 9999, "cache": 4}], "stages.ppo.rewards.0.limit: the penalty begins above 9995"),
        ([{"name": "function", "function": "module.f"}], "stages.ppo.rewards.0.function"),
        ([{"name": "reasoning_gym", "task": "gcd"}], "stages.ppo.rewards.0.task"),
        ([{"name": "http", "url": "https://a:b@c.example"}], "stages.ppo.rewards.0.url"),
        (
            [{"name": "judge", "url": "https://c", "model": "m", "lowest": 9, "highest": 1}],
            "stages.ppo.rewards.0: lowest",
        ),
        ([{"name": "gsm8k", "label": "std"}], "stages.ppo.rewards.0.label: std names another metric"),
        ([{"name": "gsm8k", "weight": 0}], "stages.ppo.rewards.0.weight: 0, and no other reward is learned from"),
        ([{"name": "gsm8k", "calls": {"max_failed": 1}}], "stages.ppo.rewards.0.calls.max_failed"),
        ([{"name": "gsm8k"}, {"name": "format", "pattern": "x", "label": "gsm8k"}], "stages.ppo.rewards.1.label"),
    ],
)
def test_rewards_that_cannot_be_are_refused_by_their_field(
    three_stages: Path, rewards: list[dict[str, Any]], message: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        load(three_stages, rewards)
    assert message in str(caught.value)


def test_a_fixed_score_of_cut_answers_takes_the_place_of_the_penalty(three_stages: Path) -> None:
    stage = load(three_stages, [{"name": "gsm8k"}], "stages.ppo.missing_eos_score=-1").trained["ppo"]
    assert isinstance(stage, Rl)
    assert (stage.missing_eos_score, stage.missing_eos_penalty) == (-1.0, 0.0)
    with pytest.raises(RecipeError, match=r"stages\.ppo\.missing_eos_penalty: 0\.5, and missing_eos_score is -1"):
        load(three_stages, [{"name": "gsm8k"}], "stages.ppo.missing_eos_score=-1", "stages.ppo.missing_eos_penalty=0.5")
    with pytest.raises(RecipeError, match=r"stages\.ppo\.missing_eos_score: -11, and reward_clip 10 would cut it"):
        load(three_stages, [{"name": "gsm8k"}], "stages.ppo.missing_eos_score=-11")
