"""Trajectories of several turns on the tiny model: tokens in are tokens out, and what was drawn alone is learned."""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from tests.support.environment_runs import first_step_of_each, run_of
from tests.support.ranks import Ranks
from tests.support.rl_step import (
    CRITIC,
    POLICY,
    RlWorker,
    comparable,
    first_sync,
    make_run,
    pool_of,
    prompts_of,
    rl_step,
)
from triptych.data.replies import ReplyTokens
from triptych.environments.base import Step
from triptych.errors import RunError
from triptych.models.base import load_tokenizer
from triptych.rollout.trajectory import Trajectory
from triptych.stages.rl.episodes import checked
from triptych.train.batch import answer_mask, sample_batch
from triptych.train.tasks.rl import objectives


def trajectories(run: RlWorker) -> list[Trajectory]:
    prompts = prompts_of(run, 1)
    return list(run.sample(prompts, "0", run.stage.rollout.sampling).records)


def test_tokens_in_are_tokens_out_over_three_turns(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path)
    found, pool = trajectories(run), pool_of(run)
    replies = ReplyTokens(load_tokenizer(tiny_model_dir), "user")
    assert len(pool.requests) == 3
    for number, one in enumerate(found):
        whole = [*one.prompt_ids, *one.response_ids]
        expected: list[int] = []
        for turn in range(3):
            request, record = pool.requests[turn][number], pool.records[turn][number]
            assert list(request.prompt_ids) == whole[: len(request.prompt_ids)]
            start, end = one.turns[turn]
            assert one.response_ids[start:end] == record.response_ids
            expected += [*record.response_ids, *(replies.of(f"turn {turn + 1}") if turn < 2 else [])]
        assert list(one.response_ids) == expected
        drawn = [token for token, own in zip(one.response_ids, one.drawn, strict=True) if own]
        assert drawn == [token for turn in pool.records for token in turn[number].response_ids]
        assert (one.earned, one.finish_reason) == (6.0, "stop")
    leases = [request.lease for request in pool.requests[2]]
    assert leases[0] == "0/0/0+2"
    assert len({request.seed for turn in pool.requests for request in turn}) == 18


def test_an_asynchronous_environment_goes_on_with_what_it_began_in_an_earlier_turn(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    run = run_of(tiny_model_dir, tmp_path, "Feeding", environment={"calls": {"timeout_s": 10.0}})
    replies = ReplyTokens(load_tokenizer(tiny_model_dir), "user")
    for one in trajectories(run):
        written = [token for token, own in zip(one.response_ids, one.drawn, strict=True) if not own]
        assert (one.failed, one.earned) == (None, 3.0)
        assert written == [*replies.of("turn 1"), *replies.of("turn 2")]


def test_an_environment_ends_a_trajectory_and_so_does_a_turn_that_was_cut(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path, arguments={"last": 0})
    numbers = [prompt.fields["number"] for prompt in prompts_of(run, 1)]
    turns = [len(one.turns) for one in trajectories(run)]
    assert turns == [2 if number == 0 else 3 for number in numbers for _ in range(2)]
    plain = make_run(tiny_model_dir, tmp_path / "cut", environment={"name": "calculator"})
    first_sync(plain, 0)
    cut = trajectories(plain)
    assert {len(one.turns) for one in cut if one.finish_reason == "length"} == {1}


@pytest.mark.parametrize("algorithm", ["ppo", "grpo", "gspo", "reinforce_pp"])
def test_a_step_learns_from_what_was_drawn_and_from_nothing_else(
    tiny_model_dir: Path, tmp_path: Path, algorithm: str
) -> None:
    run = run_of(tiny_model_dir, tmp_path, arguments={"last": 0}, algorithm={"name": algorithm})
    metrics = rl_step(run, 1)
    # The learner's log-probabilities of every turn are the engines': no token stands one place off.
    assert metrics["logprob_gap_max"] < 1e-6  # engines give 32 bits
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-12)
    table = pq.read_table(Path(run.ctx.folder) / "rollouts" / "step-00000001.parquet").to_pydict()
    assert metrics["tokens"] == sum(map(sum, table["drawn"]))
    for name in ("logprobs", "versions", "policy_logprobs", "advantages", "importance_weights"):
        for values, drawn in zip(table[name], table["drawn"], strict=True):
            assert [value is not None for value in values] == drawn, name


def test_tokens_of_the_environment_change_neither_loss_nor_gradient(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path, algorithm={"name": "ppo"})
    samples = run.sample(prompts_of(run, 1), "0", run.stage.rollout.sampling)
    scored = run.forward_passes(samples, torch.arange(6.0))
    columns = run.algorithm.credit(scored, 0.05).columns()
    odd = {name: torch.where(scored.mask, value, math.nan) for name, value in columns.items()}
    for objective in objectives(run.stage, (POLICY, CRITIC)):
        found = []
        for given in (columns, odd):
            [(_, batch)] = samples.micro_batches(run.learner, rows=[0], columns=given)
            assert batch is not None
            model = run.learner.model
            with model.use(objective.role):
                sums, _ = objective.loss(model, batch)
                total = torch.stack([value.double() for value in sums.values()]).sum()
                own = [p for p in model.parameters_of(objective.role).values() if p.requires_grad]
                found.append((total.detach(), torch.autograd.grad(total, own)))
        torch.testing.assert_close(found[0], found[1], rtol=0.0, atol=0.0)


def test_values_and_denominators_count_drawn_tokens_alone() -> None:
    batch = sample_batch([[5, 6], [7]], [[1, 2, 3, 4], [1, 2]], 0, [[True, False, False, True], [True, True]])
    assert answer_mask(batch).tolist() == [[True, False, False, True], [True, True, False, False]]


def test_minibatches_of_any_size_and_padding_give_one_gradient(tiny_model_dir: Path, tmp_path: Path) -> None:
    found = []
    for name, tokens in (("small", 40), ("large", 4000)):
        run = run_of(tiny_model_dir, tmp_path / name, algorithm={"name": "grpo"})
        run.stage.train.batch.__dict__["micro_tokens"] = tokens
        found.append(comparable(rl_step(run, 1)))
    assert found[0] == pytest.approx(found[1], rel=1e-9, abs=1e-12)


def test_what_fails_is_left_out_and_too_much_of_it_stops_the_run(tiny_model_dir: Path, tmp_path: Path) -> None:
    calls = {"timeout_s": 2.0, "max_failed": 0.7}
    run = run_of(tiny_model_dir, tmp_path, "Failing", {"broken": 0, "hung": 1}, environment={"calls": calls})
    numbers = [prompt.fields["number"] for prompt in prompts_of(run, 1)]
    failed = {one.failed for one in trajectories(run)}
    expected = {0: "ValueError: no such door", 1: "no answer within 2 s"}
    assert failed == {expected.get(number) for number in numbers}
    metrics = rl_step(run, 1)
    assert metrics["reward_failed"] == 2.0 * len({0, 1} & set(numbers))
    strict = run_of(tiny_model_dir, tmp_path / "strict", "Wordy", environment={"calls": {"max_failed": 0.1}})
    with pytest.raises(
        RunError, match=r"stages.rl.environment: 6 of 6 .* a reply of \d+ tokens, and max_reply_tokens is 48"
    ):
        rl_step(strict, 1)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Step("next", None), "step gave a reward: None is no number"),  # type: ignore[arg-type]
        (Step("next", math.nan), "step gave a reward: nan is no finite number"),
        (Step("next", "3"), "step gave a reward: '3' is no number, but str"),  # type: ignore[arg-type]
        (Step(5), "step gave a reply that is int, not a text or None"),  # type: ignore[arg-type]
        ({"reply": "next"}, "step gave dict, not a Step"),
    ],
)
def test_a_step_that_is_none_is_refused(step: object, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{message}$"):
        checked(step)


def test_a_step_that_is_none_fails_its_trajectory_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path, "Odd", {"odd": 1}, environment={"calls": {"max_failed": 0.9}})
    run.prompts[:] = run.prompts[:3]
    numbers = [prompt.fields["number"] for prompt in prompts_of(run, 1) for _ in range(2)]
    found = zip(numbers, trajectories(run), strict=True)
    failed = {number: one.failed for number, one in found}
    assert failed == {0: None, 1: "ValueError: step gave a reward: None is no number", 2: None}


def test_an_environment_that_is_false_as_an_object_is_made_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = run_of(tiny_model_dir, tmp_path, "Empty")
    assert {one.earned for one in trajectories(run)} == {6.0}


def test_a_reply_that_the_template_cannot_write_fails_its_trajectory_alone(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, written = run_of(tiny_model_dir, tmp_path, environment={"calls": {"max_failed": 0.9}}), ReplyTokens.of
    assert run.player is not None
    replied: list[str] = []

    def of(self: ReplyTokens, reply: str) -> list[int]:
        replied.append(reply)
        if len(replied) == 2:
            raise ValueError("the control token '@' has one character, and cannot be escaped")
        return written(self, reply)

    monkeypatch.setattr(ReplyTokens, "of", of)
    failed = [one.failed for one in trajectories(run)]
    assert [reason for reason in failed if reason] == [
        "a reply that cannot be written: the control token '@' has one character, and cannot be escaped"
    ]


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(ranks: Ranks, tiny_model_dir: Path, tmp_path: Path) -> None:
    algorithms = {name: {"name": name} for name in ("ppo", "grpo")}
    alone = first_step_of_each(tiny_model_dir, tmp_path / "alone", "single", algorithms)
    for found in ranks.run(first_step_of_each, tiny_model_dir, tmp_path / "both", "ddp", algorithms):
        for name, metrics in alone.items():
            assert found[name] == pytest.approx(metrics, rel=1e-9, abs=1e-9), name
