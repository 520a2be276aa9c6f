"""The RL step on the tiny model: real samples of an engine in this process, in float64 unless a test says otherwise."""

import datetime
import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast, get_args

import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from tests.support.fake_pool import FakePool
from tests.support.ranks import Ranks
from tests.support.rl_step import (
    CRITIC,
    POLICY,
    RlWorker,
    Samples,
    Trained,
    evaluate,
    first_sync,
    make_run,
    pool_of,
    prompts_of,
    request,
    requests_of,
    resume,
    rl_step,
    samples_of,
    save,
    score_answers,
    token_rewards,
    train,
    update,
    with_terms,
)
from triptych.algorithms.base import Credit, Scored
from triptych.data.encode import PromptExample
from triptych.data.table import Table, write_table
from triptych.engines.base import RolloutRecord
from triptych.errors import RunError
from triptych.objectives.kl import AdaptiveKL
from triptych.recipe import REFERENCE, Sampling, Workers, load_recipe
from triptych.recipe.errors import RecipeError
from triptych.rewards.base import Answer, Forward
from triptych.rewards.table import REWARDS
from triptych.rollout.coordinator import SyncReport
from triptych.rollout.pool import RolloutPool
from triptych.rollout.trajectory import Trajectory
from triptych.stages.recorder import Recorder
from triptych.stages.rl.prompts import prompt_table, read_prompts
from triptych.stages.rl.sync import probe, sync_policy
from triptych.train.tasks.forward import response_logprobs

NAN = math.nan
ONE = {"prompts_per_step": 1, "samples_per_prompt": 1}
ON_TWO_RANKS = {"ddp": torch.float64, "fsdp": torch.float64, "zero1": torch.float32, "zero2": torch.float32}
"""Strategies of several ranks that PPO allows, in the highest precision that each takes. `auto` is ddp or single."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Largest difference of a metric after two steps, relative to it where it is more than 1."""


@dataclass(frozen=True)
class Stepped:
    """A run after some steps, and the parameters of its roles before them."""

    run: RlWorker
    metrics: list[dict[str, float]]
    before: dict[str, dict[str, Tensor]]


@pytest.fixture(scope="module")
def still(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> RlWorker:
    """A run that no test changes."""
    return make_run(_tiny_model, tmp_path_factory.mktemp("still"))


@pytest.fixture(scope="module")
def first(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stepped:
    """One step of one epoch in one minibatch."""
    return _stepped(make_run(_tiny_model, tmp_path_factory.mktemp("first")), 1)


@pytest.fixture(scope="module")
def adaptive(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Stepped:
    """Two steps of two epochs, with a coefficient that follows the KL."""
    kl = {"coef": 0.5, "target": 1.0, "horizon": 60}
    return _stepped(make_run(_tiny_model, tmp_path_factory.mktemp("adaptive"), epochs=2, kl=kl), 2)


def _stepped(run: RlWorker, steps: int) -> Stepped:
    first_sync(run, 0)
    model = run.learner.model
    before = {role: {n: p.detach().clone() for n, p in model.parameters_of(role).items()} for role in model.trainable}
    return Stepped(run, [rl_step(run, step) for step in range(1, steps + 1)], before)


@pytest.fixture
def run(tiny_model_dir: Path, tmp_path: Path) -> RlWorker:
    """A run on one rank whose engine has the first weights."""
    made = make_run(tiny_model_dir, tmp_path)
    first_sync(made, 0)
    return made


# The rewards of tokens


def test_a_token_is_rewarded_by_its_kl_and_the_last_by_the_score_too(still: RlWorker) -> None:
    samples = _samples([(3, "stop"), (1, "length"), (2, "stop")])
    old = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, NAN, NAN], [-1.0, -1.0, NAN]], dtype=torch.float64)
    reference = torch.tensor([[-1.5, -1.0, -0.5], [-2.0, NAN, NAN], [-1.0, -3.0, NAN]], dtype=torch.float64)
    scores = torch.tensor([1.0, -5.0, 7.0], dtype=torch.float64)
    run = with_terms(still, reward_clip=2.0, missing_eos_penalty=0.5, kl={"coef": 0.1})
    expected = [
        [-0.1 * 0.5, -0.1 * -1.0, 1.0],  # within the clip, ended by itself
        [-0.1 * -1.0 + (-2.0 - 0.5), 0.0, 0.0],  # clipped, then punished for its length
        [0.0, -0.1 * 2.0 + 2.0, 0.0],
    ]
    found = token_rewards(run, samples, scores, old, reference)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


@pytest.mark.parametrize(("kind", "penalty"), [("k1", 0.5), ("k2", 0.125), ("k3", math.exp(-0.5) - 0.5)])
def test_the_penalty_is_the_estimator_of_the_recipe(still: RlWorker, kind: str, penalty: float) -> None:
    run = with_terms(still, kl={"coef": 2.0, "kind": kind})
    old, reference = torch.tensor([[-1.0, -1.0]]).double(), torch.tensor([[-1.5, -1.0]]).double()
    found = token_rewards(run, _samples([(2, "stop")]), torch.zeros(1).double(), old, reference)
    assert found.tolist() == [pytest.approx([-2.0 * penalty, 0.0], abs=1e-15)]


@pytest.mark.slow
def test_an_adaptive_coefficient_follows_the_kl_of_each_step(adaptive: Stepped) -> None:
    """A row has the coefficient that its step was taken with."""
    first, second = adaptive.metrics
    assert first["kl_coef"] == 0.5
    assert first["kl"] == 0.0  # policy and reference are equal: the error is cut at -0.2
    assert second["kl_coef"] == pytest.approx(0.5 * (1 - 0.2 * 6 / 60), abs=1e-15)
    error = min(max(second["kl"] - 1.0, -0.2), 0.2)
    assert error != 0.0
    assert adaptive.run.kl_coef == pytest.approx(second["kl_coef"] * (1 + error * 6 / 60), abs=1e-15)


def test_a_kl_that_is_no_number_moves_no_coefficient(run: RlWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    run = replace(run, kl=AdaptiveKL(0.5, 1.0, 60))
    monkeypatch.setattr(Scored, "kl", NAN)
    assert rl_step(run, 1)["kl_coef"] == 0.5
    assert run.kl_coef == 0.5


def test_the_coefficient_survives_a_restart(run: RlWorker) -> None:
    numbers = SimpleNamespace(flush=lambda step: None)
    run = replace(run, kl=AdaptiveKL(0.5, 1.0, 60))
    assert run.kl is not None
    run.kl.update(2.0, 6)
    save(run, cast(Recorder, numbers), 1)
    run.writer.wait()
    again = replace(run, kl=AdaptiveKL(0.5, 1.0, 60))
    assert resume(again) == 1
    assert again.kl_coef == run.kl_coef == pytest.approx(0.5 * 1.02)


# What is sampled


def test_every_epoch_asks_each_prompt_once_in_an_order_of_its_own(still: RlWorker) -> None:
    asked = [ask.prompt_ids for step in range(1, 6) for ask in requests_of(still, step)[::2]]
    epochs = [asked[:5], asked[5:10], asked[10:]]
    assert all(sorted(epoch) == sorted(tuple(prompt.input_ids) for prompt in still.prompts) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_the_samples_of_a_prompt_stand_together_under_leases_of_their_own(still: RlWorker) -> None:
    asked = requests_of(still, 8)
    assert [ask.lease for ask in asked] == ["7/0/0", "7/0/1", "7/1/0", "7/1/1", "7/2/0", "7/2/1"]
    assert [ask.prompt_ids for ask in asked[::2]] == [ask.prompt_ids for ask in asked[1::2]]
    assert requests_of(still, 8) == asked


def test_a_seed_follows_from_the_recipes_seed_and_the_lease(still: RlWorker) -> None:
    seeds = [ask.seed for step in range(1, 4) for ask in requests_of(still, step)]
    assert len(set(seeds)) == len(seeds)
    assert request([1], "0/0/0", 0).seed == request([2], "0/0/0", 0).seed == 3993743252  # the same in every version
    assert request([1], "0/0/0", 1).seed != request([1], "0/0/0", 0).seed


def test_each_step_samples_with_the_weights_of_the_step_before(adaptive: Stepped) -> None:
    for step, (metrics, records) in enumerate(zip(adaptive.metrics, pool_of(adaptive.run).records, strict=True)):
        assert max(metrics["logprob_gap_max"], metrics["sync_gap"]) < 1e-6  # both are told in float32
        assert {version for record in records for version in record.versions} == {step}
    assert adaptive.metrics[1]["kl"] != 0.0


def test_an_engine_that_keeps_the_old_weights_is_noticed(run: RlWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.pool, "sync", lambda *weights: SyncReport(0.0, "", "merged"))
    with pytest.raises(RunError, match="still runs the old weights"):
        rl_step(run, 1)


def test_answers_that_fill_the_context_are_checked_without_their_first_tokens(
    run: RlWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine scores nothing that is as long as its context."""
    rollout = run.stage.rollout.model_dump() | {"max_prompt_tokens": 6}
    run = with_terms(run, rollout=rollout)
    asked: list[list[int]] = []
    answered = pool_of(run).logprobs

    def logprobs(sequences: list[list[int]], prompt_lens: list[int]) -> Any:
        asked.extend(sequences)
        return answered(sequences, prompt_lens)

    monkeypatch.setattr(pool_of(run), "logprobs", logprobs)
    ids = (50, 61, 72, 83, 94, 105)
    full = Trajectory.of(RolloutRecord("", ids, (70,) * 6, (-1.0,) * 6, (0,) * 6, "length", seed=0, engine=0))
    sync_policy(run, 1, probe(run, [full, replace(full, prompt_ids=(50, 61))]))
    assert asked == [[61, 72, 83, 94, 105, *(70,) * 6], [50, 61, *(70,) * 6]]


def test_the_fake_pool_is_called_as_the_real_one() -> None:
    for name in ("generate", "sync", "logprobs", "stats"):
        assert inspect.signature(getattr(FakePool, name)) == inspect.signature(getattr(RolloutPool, name)), name


# Prompts and rewards


def test_a_reward_is_given_each_answer_with_the_fields_of_its_prompt(
    run: RlWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Answer] = []

    class Numbered:
        def score(self, answers: Sequence[Answer], forward: Forward) -> Tensor:
            given.extend(answers)
            return torch.tensor([float(answer.fields["number"]) for answer in answers])

    monkeypatch.setitem(REWARDS, "model", lambda settings, roles: Numbered())
    metrics = rl_step(run, 1)
    assert {answer.prompt_ids: answer.fields["number"] for answer in given} == {
        tuple(prompt.input_ids): prompt.fields["number"] for prompt in prompts_of(run, 1)
    }
    records = pool_of(run).records[0]
    assert [answer.response_ids for answer in given] == [record.response_ids for record in records]
    assert [answer.text for answer in given] == run.texts([record.response_ids for record in records])
    assert metrics["reward"] == pytest.approx(sum(answer.fields["number"] for answer in given) / 6)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_named_before_anything_is_learned(
    run: RlWorker, monkeypatch: pytest.MonkeyPatch, score: float
) -> None:
    class Broken:
        def score(self, answers: Sequence[Answer], forward: Forward) -> Tensor:
            return torch.tensor([1.0] * (len(answers) - 1) + [score])

    monkeypatch.setitem(REWARDS, "model", lambda settings, roles: Broken())
    before = {name: p.detach().clone() for name, p in run.learner.model.parameters_of(POLICY).items()}
    with pytest.raises(RunError, match=rf"rewards\.0 \(model\): its score of .* is {score}.*for 1 of 6") as refused:
        rl_step(run, 1)
    record = pool_of(run).records[-1][-1]
    assert repr(run.texts([record.prompt_ids])[0]) in str(refused.value)
    assert all((p == before[name]).all() for name, p in run.learner.model.parameters_of(POLICY).items())


def test_a_reward_scores_each_answer_once(run: RlWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    class Short:
        def score(self, answers: Sequence[Answer], forward: Forward) -> Tensor:
            return torch.ones(len(answers) - 1)

    monkeypatch.setitem(REWARDS, "model", lambda settings, roles: Short())
    with pytest.raises(RunError, match=r"the shape \[5\] for 6 answers"):
        rl_step(run, 1)


@pytest.mark.parametrize(
    ("field", "named"),
    [
        ("rollout", "the engine's log-probabilities"),
        ("old", "the log-probabilities by the policy"),
        ("reference", "the log-probabilities by the reference"),
        ("values", "the values by the critic"),
    ],
)
def test_a_pass_that_gives_no_numbers_is_named_before_anything_is_learned(
    run: RlWorker, monkeypatch: pytest.MonkeyPatch, field: str, named: str
) -> None:
    passes = RlWorker.forward_passes

    def broken(worker: RlWorker, samples: Samples, scores: Tensor) -> Scored:
        found = passes(worker, samples, scores)
        numbers = getattr(found, field).clone()
        numbers[~found.mask] = NAN  # padding is never read
        numbers[2, 0] = NAN
        return replace(found, **{field: numbers})

    monkeypatch.setattr(RlWorker, "forward_passes", broken)
    with pytest.raises(RunError, match=f"{named} of the answer .* are not finite, and so for 1 of 6 answers"):
        rl_step(run, 1)


def test_committed_prompts_keep_the_other_columns_of_their_rows(still: RlWorker) -> None:
    day, fields = datetime.date(2026, 11, 29), {"answer": "42", "steps": [1, 2]}
    prompts = [PromptExample([1, 2], fields), PromptExample([3], {"day": day, "picture": b"\x00"})]
    write_table(f"{still.ctx.folder}/data/new", prompt_table(prompts, "digest"))
    assert read_prompts(still.ctx, "new") == [
        PromptExample([1, 2], fields),
        PromptExample([3], {"day": "2026-11-29", "picture": None}),
    ]


def test_prompts_that_an_earlier_version_committed_have_no_fields(still: RlWorker) -> None:
    write_table(f"{still.ctx.folder}/data/old", Table({"prompt_ids": [[1, 2], [3]]}, "digest"))
    assert read_prompts(still.ctx, "old") == [PromptExample([1, 2], {}), PromptExample([3], {})]


# The update


def test_the_first_minibatch_has_ratio_one(first: Stepped) -> None:
    metrics = first.metrics[0]
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-12)
    assert metrics["approx_kl"] == pytest.approx(0.0, abs=1e-24)  # half the mean square of the log-ratios
    assert metrics["clipped"] == metrics["value_clipped"] == 0.0
    assert metrics["policy_loss"] == pytest.approx(0.0, abs=1e-6)  # whitened advantages have mean 0


def test_later_minibatches_have_other_ratios(adaptive: Stepped) -> None:
    assert all(abs(metrics["ratio"] - 1.0) > 1e-3 for metrics in adaptive.metrics)


def test_every_sample_is_learned_from_once_an_epoch(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tiny_model_dir, tmp_path, epochs=2, minibatches=2)
    first_sync(run, 0)
    samples = run.sample(prompts_of(run, 1), "0", run.stage.rollout.sampling)
    numbers = torch.arange(6, dtype=torch.float64)[:, None].expand(samples.mask.shape)
    learned: dict[str, list[list[int]]] = {POLICY: [], CRITIC: []}
    step = run.learner.step

    def spy(objective: Any, batches: Sequence[dict[str, Tensor]]) -> Any:
        column = "advantages" if objective.role == POLICY else "returns"
        learned[objective.role].append([int(row) for batch in batches for row in batch[column][:, 0]])
        return step(objective, batches)

    monkeypatch.setattr(run.learner, "step", spy)
    update(run, 1, samples, Credit(numbers, numbers, numbers, numbers, numbers))
    assert learned[POLICY] == learned[CRITIC]
    first, second = learned[POLICY][:2], learned[POLICY][2:]
    assert [len(rows) for rows in first + second] == [3, 3, 3, 3]
    assert sorted(first[0] + first[1]) == sorted(second[0] + second[1]) == list(range(6))
    assert set(first[0]) != set(second[0])


def test_only_policy_and_critic_change(first: Stepped) -> None:
    changed = {
        role
        for role, before in first.before.items()
        for name, now in first.run.learner.model.parameters_of(role).items()
        if not torch.equal(now, before[name])
    }
    assert changed == {POLICY, CRITIC}
    assert changed < first.before.keys()


# What is left behind


def test_a_step_leaves_its_answers(first: Stepped) -> None:
    run = first.run
    table = pq.read_table(Path(run.ctx.folder) / "rollouts" / "step-00000001.parquet").to_pydict()
    records = pool_of(run).records[0]
    assert table["lease"] == [record.lease for record in records]
    assert table["group"] == [0, 0, 1, 1, 2, 2]
    assert table["response_ids"] == [list(record.response_ids) for record in records]
    assert table["finish_reason"] == [record.finish_reason for record in records]
    assert table["logprobs"] == [list(record.logprobs) for record in records]
    assert [len(values) for values in table["advantages"]] == [len(record.response_ids) for record in records]
    for drawn, seen in zip(table["logprobs"], table["policy_logprobs"], strict=True):
        assert seen == pytest.approx(drawn, abs=1e-9)
    for policy, reference in zip(table["policy_logprobs"], table["reference_logprobs"], strict=True):
        assert policy == reference, "before the first update they are one model"
    assert table["score"] == table["reward_model"] == score_answers(run, samples_of(records)).total.tolist()


def test_heldout_answers_are_those_of_fixed_seeds(run: RlWorker) -> None:
    first, second = evaluate(run, "one"), evaluate(run, "two")
    asked = pool_of(run).requests
    assert first == second
    assert asked[0] == asked[1]
    assert [ask.lease for ask in asked[0]] == ["heldout/0/0", "heldout/0/1", "heldout/1/0", "heldout/1/1"]
    records = pool_of(run).records[0]
    assert first["heldout_reward"] == float(score_answers(run, samples_of(records)).total.mean())
    assert first["heldout_kl"] == 0.0
    assert first["heldout_length"] == sum(len(record.response_ids) for record in records) / 4
    assert first["heldout_truncated"] == sum(record.finish_reason == "length" for record in records) / 4


def test_the_heldout_kl_is_of_the_policies_that_were_sampled(run: RlWorker) -> None:
    """At the evaluation's temperature, whatever the rollouts' is."""
    evaluation = Sampling(max_new_tokens=6, temperature=0.3)
    run = with_terms(run, evaluation=evaluation.model_dump())
    assert run.stage.rollout.sampling.temperature == 0.7
    with torch.no_grad():
        for parameter in run.learner.model.parameters_of(POLICY).values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).double() * 0.1)
    metrics = evaluate(run, "one")
    samples = run.sample(run.heldout["heldout"], "heldout", evaluation)

    def total(role: str, temperature: float) -> Tensor:
        compute = partial(response_logprobs, temperature=temperature)
        return samples.forward(run.learner, role, compute).sum(dim=1)

    right, wrong = ((total(POLICY, t) - total(REFERENCE, t)).mean().item() for t in (0.3, 0.7))
    assert metrics["heldout_kl"] == pytest.approx(right, abs=1e-12)
    assert abs(right - wrong) > 1e-3


def test_one_heldout_answer_has_no_deviation(run: RlWorker) -> None:
    run = with_terms(run, rollout=run.stage.rollout.model_dump() | ONE)
    run = replace(run, heldout={"heldout": run.heldout["heldout"][:1]})
    metrics = evaluate(run, "before")
    assert "heldout_reward_std" not in metrics
    assert all(math.isfinite(value) for value in metrics.values())
    row = rl_step(run, 1)
    assert "reward_std" not in row
    assert all(math.isfinite(value) for value in row.values())


# Strategies and precisions


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ON_TWO_RANKS)
def test_two_ranks_sample_and_measure_what_one_does(
    ranks: Ranks, tiny_model_dir: Path, tmp_path: Path, alone: dict[torch.dtype, Trained], strategy: str
) -> None:
    dtype = ON_TWO_RANKS[strategy]
    for rank, found in enumerate(ranks.run(train, tiny_model_dir, tmp_path, strategy, dtype)):
        assert len(found.metrics) == len(alone[dtype].metrics)
        for metrics, expected in zip(found.metrics, alone[dtype].metrics, strict=True):
            assert metrics == pytest.approx(expected, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
        assert _texts(found.records) == ([] if rank else _texts(alone[dtype].records))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_resumed_run_repeats_the_step_that_was_lost(alone: dict[torch.dtype, Trained], dtype: torch.dtype) -> None:
    _, _, second, resumed = alone[dtype].metrics
    assert resumed == second
    assert alone[dtype].records[-1] == alone[dtype].records[-2]


def test_the_strategies_tested_are_those_that_the_recipe_allows(three_stages: Path) -> None:
    every = get_args(Workers.model_fields["strategy"].annotation)
    allowed = {name for name in every if _allowed(three_stages, f"stages.ppo.train.workers.strategy={name}")}
    assert allowed == {"auto", "single", *ON_TWO_RANKS}


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_runs_in_half_precision(tiny_model_dir: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    run = make_run(tiny_model_dir, tmp_path, dtype=dtype, epochs=4)
    first_sync(run, 0)
    metrics = rl_step(run, 1)
    assert metrics["skipped"] < 1.0  # float16 may skip updates until its loss scale fits
    assert metrics["approx_kl"] > 0.0
    assert math.isfinite(metrics["reward"] + metrics["policy_loss"] + metrics["value_loss"])


@pytest.fixture(scope="module")
def alone(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[torch.dtype, Trained]:
    """One rank's run in each precision."""
    return {
        dtype: train(_tiny_model, tmp_path_factory.mktemp("alone"), "single", dtype)
        for dtype in set(ON_TWO_RANKS.values())
    }


def _samples(answers: Sequence[tuple[int, Literal["stop", "length"]]]) -> Samples:
    """Answers of so many tokens that ended so."""
    empty = RolloutRecord("", (50, 60), (), (), (), "stop", seed=0, engine=0)
    records = [
        replace(empty, response_ids=(70,) * length, logprobs=(-1.0,) * length, finish_reason=reason)
        for length, reason in answers
    ]
    return samples_of(records)


def _texts(calls: Sequence[Sequence[RolloutRecord]]) -> list[list[tuple[str, tuple[int, ...], tuple[int, ...]]]]:
    """What was answered to what, without the engine's log-probabilities."""
    return [[(record.lease, record.prompt_ids, record.response_ids) for record in records] for records in calls]


def _allowed(recipe: Path, override: str) -> bool:
    try:
        load_recipe(recipe, [override, "model.dtype=float32"])
    except RecipeError:
        return False
    return True
