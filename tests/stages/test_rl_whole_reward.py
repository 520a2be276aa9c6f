"""RL with reward models that are whole models: what they score, what they stand on, what changes and what does not."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.ranks import Ranks
from tests.support.rl_step import (
    CRITIC,
    POLICY,
    RlWorker,
    comparable,
    evaluate,
    first_sync,
    make_run,
    pool_of,
    rl_step,
    score_answers,
)
from tests.support.whole_reward import make_whole_reward, plain_scores, whole_reward_in
from triptych.recipe import REFERENCE, REWARD
from triptych.recipe.method import Freeze, Full
from triptych.stages.whole_model import WholeModel

GRPO: dict[str, Any] = {"algorithm": {"name": "grpo"}, "kl": {"coef": 0.05}}
PPO: dict[str, Any] = {"algorithm": {"name": "ppo", "critic": {"optimizer": {"lr": 0.01}}}, "kl": {"coef": 0.05}}
SMALL: dict[str, Any] = {"optimizer": {"lr": 0.001}}
BASE_POLICY = WholeModel(None, Full())


@pytest.fixture
def judge(tiny_model_dir: Path, tmp_path: Path) -> WholeModel:
    return make_whole_reward(tmp_path / "judge", tiny_model_dir)


def roles_of(run: RlWorker) -> list[set[str]]:
    """The roles on each model."""
    return [set(one.model.trainable) for one in run.learner.each]


def state_of(run: RlWorker) -> list[dict[str, torch.Tensor]]:
    return [{name: one.clone() for name, one in each.model.state_dict().items()} for each in run.learner.each]


@pytest.mark.parametrize("micro_tokens", [8, 24, 512], ids=lambda count: f"{count} tokens at once")
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("whole", [None, BASE_POLICY], ids=["lora", "whole policy"])
def test_scores_are_those_of_plain_transformers(
    tiny_model_dir: Path, tmp_path: Path, judge: WholeModel, packing: bool, micro_tokens: int, whole: WholeModel | None
) -> None:
    run = make_run(tiny_model_dir, tmp_path, dtype=torch.float32, whole=whole, judges=[judge], packing=packing, **GRPO)
    samples = run.sample(run.prompts, "0", run.stage.rollout.sampling)
    samples = type(samples)(**{**vars(samples), "micro_tokens": micro_tokens})
    sequences = [[*one.prompt_ids, *one.response_ids] for one in samples.records]
    assert len({len(ids) for ids in sequences}) > 2
    found = score_answers(run, samples)
    assert judge.folder is not None
    torch.testing.assert_close(found.parts["model"], plain_scores(judge.folder, sequences), rtol=1e-5, atol=1e-5)


def test_held_out_answers_are_scored_by_it(tiny_model_dir: Path, tmp_path: Path, judge: WholeModel) -> None:
    run = make_run(tiny_model_dir, tmp_path, dtype=torch.float32, judges=[judge], **GRPO)
    first_sync(run, 0)
    found = evaluate(run, "before")
    records = pool_of(run).records[-1]
    assert judge.folder is not None
    expected = plain_scores(judge.folder, [[*one.prompt_ids, *one.response_ids] for one in records])
    assert found["heldout_reward"] == pytest.approx(expected.mean().item(), abs=1e-5)


def test_several_whole_models_and_adapters_score_side_by_side(
    tiny_model_dir: Path, tmp_path: Path, judge: WholeModel
) -> None:
    other = make_whole_reward(tmp_path / "other", tiny_model_dir, Freeze(layers=1), seed=4)
    rewards = [{"stage": "reward@1"}, {"stage": "reward@2", "weight": 0.5}, {"stage": "reward@3", "weight": 2.0}]
    run = make_run(tiny_model_dir, tmp_path, dtype=torch.float32, judges=[judge, other], rewards=rewards, **GRPO)
    assert roles_of(run) == [{POLICY, REFERENCE, "reward_3"}, {REWARD}, {"reward_2"}]
    samples = run.sample(run.prompts[:3], "0", run.stage.rollout.sampling)
    found = score_answers(run, samples)
    sequences = [[*one.prompt_ids, *one.response_ids] for one in samples.records]
    for label, one in (("model", judge), ("model_2", other)):
        assert one.folder is not None
        torch.testing.assert_close(found.parts[label], plain_scores(one.folder, sequences), rtol=1e-5, atol=1e-5)
    total = found.parts["model"] + 0.5 * found.parts["model_2"] + 2.0 * found.parts["model_3"]
    torch.testing.assert_close(found.total, total)


@pytest.mark.parametrize("whole", [None, BASE_POLICY], ids=["lora", "whole policy"])
def test_a_step_changes_the_policy_alone(
    tiny_model_dir: Path, tmp_path: Path, judge: WholeModel, whole: WholeModel | None
) -> None:
    run = make_run(tiny_model_dir, tmp_path, whole=whole, judges=[judge], **(SMALL | GRPO))
    assert roles_of(run) == ([{POLICY, REFERENCE}, {REWARD}] if whole is None else [{POLICY}, {REFERENCE}, {REWARD}])
    first_sync(run, 0)
    before = state_of(run)
    assert rl_step(run, 1)["grad_norm"] > 0.0
    changed = [{name for name in now if not torch.equal(now[name], then[name])}
               for now, then in zip(state_of(run), before, strict=True)]  # fmt: skip
    assert changed[0]
    assert not any(changed[1:])


@pytest.mark.parametrize("method", [Full(), Freeze(layers=1)], ids=["full", "last block"])
@pytest.mark.parametrize("whole", [None, BASE_POLICY], ids=["lora", "whole policy"])
def test_the_critic_is_a_whole_copy_of_it_that_learns(
    tiny_model_dir: Path, tmp_path: Path, whole: WholeModel | None, method: Full | Freeze
) -> None:
    judge = make_whole_reward(tmp_path / "judge", tiny_model_dir, method)
    run = make_run(tiny_model_dir, tmp_path, whole=whole, judges=[judge], **(SMALL | PPO))
    assert roles_of(run)[-2:] == [{REWARD}, {CRITIC}]
    scoring, critic = (one.model for one in run.learner.each[-2:])
    assert set(critic.parameters_of(CRITIC)) > {"head.weight", "head.bias"}
    ids = torch.tensor([[50, 61, 72, 83, 90]])
    with torch.no_grad(), scoring.use(REWARD), critic.use(CRITIC):
        own, copied = (one.scores(one.hidden(ids, torch.ones_like(ids))) for one in (scoring, critic))
    torch.testing.assert_close(own, copied, rtol=1e-9, atol=1e-9)
    first_sync(run, 0)
    before = state_of(run)
    assert rl_step(run, 1)["value_grad_norm"] > 0.0
    names = [{name for name in now if not torch.equal(now[name], then[name])}
             for now, then in zip(state_of(run)[-2:], before[-2:], strict=True)]  # fmt: skip
    assert not names[0]
    assert names[1]
    if isinstance(method, Freeze):
        assert not [name for name in names[1] if ".layers.0." in name]


def first_metrics(folder: Path, home: Path, judge: Path, strategy: str) -> dict[str, float]:
    """Metrics of the first step of PPO with a whole reward model on any rank."""
    run = make_run(folder, home, strategy=strategy, judges=[whole_reward_in(judge)], minibatches=2, **PPO)
    first_sync(run, 0)
    return comparable(rl_step(run, 1))


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["fsdp", pytest.param("ddp", marks=pytest.mark.exhaustive)])
def test_two_ranks_score_and_learn_as_one_does(
    ranks: Ranks, tiny_model_dir: Path, tmp_path: Path, judge: WholeModel, strategy: str
) -> None:
    assert judge.folder is not None
    alone = first_metrics(tiny_model_dir, tmp_path / "alone", judge.folder, "single")
    for found in ranks.run(first_metrics, tiny_model_dir, tmp_path / "two", judge.folder, strategy):
        assert found == pytest.approx(alone, rel=1e-9, abs=1e-9)
