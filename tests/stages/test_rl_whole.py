"""RL of policies that are whole models, on the tiny model: what changes, what stays, what engines and ranks have."""

import datetime
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.fake_pool import FakePool
from tests.support.ranks import Ranks
from tests.support.rl_step import (
    CRITIC,
    POLICY,
    RlWorker,
    Trained,
    evaluate,
    first_sync,
    make_run,
    pool_of,
    prompts_of,
    rl_step,
    train,
)
from triptych.errors import RunError
from triptych.models.full import in_buckets
from triptych.models.peft_files import MODEL_WEIGHTS
from triptych.recipe import REFERENCE, REWARD
from triptych.recipe.method import Freeze, Full
from triptych.registry import AdapterVersion
from triptych.stages.rl import sync
from triptych.stages.whole_model import WholeModel

CRITIC_LR = {"optimizer": {"lr": 0.01}}
GRPO: dict[str, Any] = {"algorithm": {"name": "grpo"}, "kl": {"coef": 0.05}}
PPO: dict[str, Any] = {"algorithm": {"name": "ppo", "critic": CRITIC_LR}, "kl": {"coef": 0.05}}
FUNCTION = {"rewards": [{"name": "length", "limit": 6, "cache": 5}]}
METHODS: dict[str, Full | Freeze] = {
    "full": Full(),
    "last block": Freeze(layers=1),
    "rows of tokens": Freeze(layers=1, tokens=(50, 61, 72)),
}
SMALL = {"optimizer": {"lr": 0.001}}
"""A step that is small against random weights."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}


def version_of(folder: Path) -> AdapterVersion:
    """A registered whole model in a folder."""
    made = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    return AdapterVersion("tiny-sft", 1, "model", "tiny", "tiny", str(folder), "0", {}, {}, made, None)


@cache
def parent_of(folder: Path) -> Path:
    """A whole model of the tiny model's shape with weights of its own, as a stage leaves it; beside the tiny model."""
    other = folder.parent / f"{folder.name}-whole"
    if not other.is_dir():
        made = folder.parent / f"{folder.name}-whole-{torch.initial_seed()}"
        shutil.copytree(folder, made)
        drawn = torch.Generator().manual_seed(7)
        weights = load_file(folder / MODEL_WEIGHTS)
        changed = {name: one + 0.02 * torch.randn(one.shape, generator=drawn) for name, one in sorted(weights.items())}
        save_file(changed, made / MODEL_WEIGHTS, metadata={"format": "pt"})
        made.rename(other)
    return other


def whole_run(folder: Path, home: Path, method: str = "full", *, of_base: bool = False, **terms: Any) -> RlWorker:
    """A run whose policy starts from `parent_of`, or from the base, and whose engine has the first weights."""
    whole = WholeModel(None if of_base else version_of(parent_of(folder)), METHODS[method])
    run = make_run(folder, home, whole=whole, **(SMALL | terms))
    first_sync(run, 0)
    return run


def train_whole(folder: Path, home: Path, strategy: str, dtype: torch.dtype, method: str, more: Any) -> Trained:
    """`train` of a whole policy."""
    whole = WholeModel(version_of(parent_of(folder)), METHODS[method])
    return train(folder, home, strategy, dtype, {"whole": whole, **SMALL, **more})


def state_of(run: RlWorker) -> list[dict[str, Tensor]]:
    """Every tensor of every model."""
    return [{name: tensor.clone() for name, tensor in one.model.state_dict().items()} for one in run.learner.each]


@pytest.mark.parametrize("method", METHODS)
def test_a_step_changes_the_policy_alone(tiny_model_dir: Path, tmp_path: Path, method: str) -> None:
    run = whole_run(tiny_model_dir, tmp_path, method, **GRPO)
    assert [set(one.model.trainable) for one in run.learner.each] == [{POLICY}, {REFERENCE}, {REWARD}]
    before = state_of(run)
    metrics = rl_step(run, 1)
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-12)
    assert metrics["kl"] == pytest.approx(0.0, abs=1e-12)  # two copies of weights, whose alignment may differ
    assert metrics["grad_norm"] > 0.0
    (policy, reference, rewarding), (own, frozen, base) = state_of(run), before
    trained = run.learner.model.parameters_of(POLICY)
    assert {name for name, now in policy.items() if not torch.equal(now, own[name])}
    assert all(not torch.equal(now, then) for now, then in zip(trained.values(), _trained(own, run), strict=True))
    assert all(torch.equal(now, frozen[name]) for name, now in reference.items())
    assert all(torch.equal(now, base[name]) for name, now in rewarding.items())
    if method != "full":
        first = {name for name in policy if ".layers.0." in name}
        assert all(torch.equal(policy[name], own[name]) for name in first)


def _trained(before: dict[str, Tensor], run: RlWorker) -> list[Tensor]:
    """The policy's parameters as they were, in their order."""
    places = {id(value): name for name, value in run.learner.model.named_parameters(remove_duplicate=False)}
    return [before[places[id(value)]] for value in run.learner.model.parameters_of(POLICY).values()]


def test_the_reference_is_what_the_policy_started_from(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = whole_run(tiny_model_dir, tmp_path, **GRPO)
    assert evaluate(run, "before")["heldout_kl"] == pytest.approx(0.0, abs=1e-12)
    rl_step(run, 1)
    stored = load_file(parent_of(tiny_model_dir) / MODEL_WEIGHTS)
    reference = run.learner.each[1].model.lm.state_dict()
    assert all(torch.equal(reference[name], value.double()) for name, value in stored.items())
    assert evaluate(run, "after")["heldout_kl"] != 0.0


def test_without_a_penalty_no_reference_is_loaded(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = whole_run(tiny_model_dir, tmp_path, **(GRPO | FUNCTION | {"kl": {"coef": 0.0}}))
    assert [set(one.model.trainable) for one in run.learner.each] == [{POLICY}]
    assert "kl" not in rl_step(run, 1)


def test_a_policy_of_the_base_shares_the_frozen_base_with_adapters(tiny_model_dir: Path, tmp_path: Path) -> None:
    run = whole_run(tiny_model_dir, tmp_path, of_base=True, **GRPO)
    assert [set(one.model.trainable) for one in run.learner.each] == [{POLICY}, {REFERENCE, REWARD}]
    assert rl_step(run, 1)["kl"] == pytest.approx(0.0, abs=1e-12)
    assert abs(rl_step(run, 2)["kl"]) > 1e-9


@pytest.mark.parametrize("rewarded", ["by a model", "by a function"])
def test_the_critic_is_a_copy_of_the_reward_model_or_else_of_the_policy(
    tiny_model_dir: Path, tmp_path: Path, rewarded: str
) -> None:
    of_function = rewarded == "by a function"
    run = whole_run(tiny_model_dir, tmp_path, **(PPO | (FUNCTION if of_function else {})))
    roles = [set(one.model.trainable) for one in run.learner.each]
    assert roles == ([{POLICY}, {REFERENCE}, {CRITIC}] if of_function else [{POLICY}, {REFERENCE}, {REWARD, CRITIC}])
    critic = run.learner.each[2].model
    names = set(critic.parameters_of(CRITIC))
    assert ("model.embed_tokens.weight" in names) == of_function
    assert {"head.weight", "head.bias"} < names
    before = state_of(run)
    metrics = rl_step(run, 1)
    assert metrics["ratio"] == pytest.approx(1.0, abs=1e-12)
    assert metrics["value_grad_norm"] > 0.0
    for number, changes in enumerate((True, False, True)):
        now = state_of(run)[number]
        assert any(not torch.equal(now[name], then) for name, then in before[number].items()) == changes


def test_a_step_is_what_plain_torch_computes(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The gradient of GRPO on whole weights, by autograd through the model's own forward pass, in float64."""
    run = whole_run(tiny_model_dir, tmp_path, **(GRPO | {"kl": {"coef": 0.0}}))
    found: dict[str, Tensor] = {}
    learner = run.learner.each[0]
    update = learner.strategy.update

    def noting(role: str, rate: float) -> Any:
        found.update({name: value.clone() for name, value in learner.gradients(role).items()})
        return update(role, rate)

    learner.strategy.update = noting  # type: ignore[method-assign]
    model = FakePool(parent_of(tiny_model_dir), torch.float64)._model.requires_grad_(True)
    metrics = rl_step(run, 1)
    records, scores = pool_of(run).records[0], _scores(run)
    losses = []
    for record, advantage in zip(records, _advantages(scores), strict=True):
        ids = torch.tensor([[*record.prompt_ids, *record.response_ids]])
        start = len(record.prompt_ids)
        logits = model(ids).logits[0, start - 1 : -1] / run.stage.rollout.sampling.temperature
        logprobs = logits.log_softmax(-1).gather(1, ids[0, start:, None])[:, 0]
        ratios = (logprobs - logprobs.detach()).exp()
        weights = (logprobs.detach() - torch.tensor(record.logprobs).double()).exp()  # what engines say is in float32
        losses.append(-(weights * ratios * advantage).mean())  # ratio 1: the clip is not reached
    torch.stack(losses).mean().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-12)
    norm = torch.stack([g.norm() for g in expected.values() if g is not None]).norm()
    assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-9)


def _scores(run: RlWorker) -> Tensor:
    """Scores of the first step's answers, as its record has them, less 1 for those that were cut."""
    table = pq.read_table(Path(run.ctx.folder) / "rollouts" / "step-00000001.parquet").to_pydict()
    cut = torch.tensor([reason == "length" for reason in table["finish_reason"]])
    return torch.tensor(table["score"], dtype=torch.float64) - cut.double()


def _advantages(scores: Tensor) -> list[float]:
    """By pairs of answers to one prompt: less their mean, over their deviation and 1e-6 (arXiv 2402.03300)."""
    pairs = scores.view(-1, 2)
    centred = pairs - pairs.mean(dim=1, keepdim=True)
    return (centred / (pairs.std(dim=1, keepdim=True) + 1e-6)).flatten().tolist()


@pytest.mark.parametrize("method", METHODS)
def test_engines_hold_exactly_the_learners_weights(
    tiny_model_dir: Path, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "in_buckets", lambda weights, dtype: in_buckets(weights, dtype, 20_000))
    run = whole_run(tiny_model_dir, tmp_path, method, **GRPO)
    rl_step(run, 1)
    pool = pool_of(run)
    assert pool.version == 1
    assert len(pool.buckets) > 2
    names = [name for bucket in pool.buckets for name in bucket]
    assert len(set(names)) == len(names)
    if method == "last block":
        assert all(".layers.1." in name for name in names), "what is frozen is not sent"
    asked = [[*record.prompt_ids, *record.response_ids] for record in pool.records[0]]
    lengths = [len(record.prompt_ids) for record in pool.records[0]]
    gaps = [
        abs(one - other)
        for said, own in zip(pool.logprobs(asked, lengths)[0], _learner_says(run, asked, lengths), strict=True)
        for one, other in zip(said, own, strict=True)
    ]
    assert max(gaps) < 1e-6  # the learner's answer to the check is in float32
    own, held = dict(run.learner.model.lm.named_parameters()), pool.weights()
    table = "model.embed_tokens.weight"
    for name in [name for name in own if ".rows." in name]:
        own[table] = own[table].index_copy(0, torch.tensor([50, 61, 72]), own.pop(name))
    assert own.keys() == held.keys() - {"lm_head.weight"}
    assert all(torch.equal(held[name], value) for name, value in own.items())


def _learner_says(run: RlWorker, asked: list[list[int]], lengths: list[int]) -> list[list[float]]:
    prompts = [ids[:n] for ids, n in zip(asked, lengths, strict=True)]
    answers = [ids[n:] for ids, n in zip(asked, lengths, strict=True)]
    return sync._learner_logprobs(run, POLICY, prompts, answers)


def test_an_engine_that_keeps_the_old_weights_is_noticed(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = whole_run(tiny_model_dir, tmp_path, **GRPO)
    pool = pool_of(run)
    monkeypatch.setattr(pool, "replace", lambda buckets, version: list(buckets))
    with pytest.raises(RunError, match="still runs the old weights"):
        rl_step(run, 1)


@pytest.mark.parametrize("method", ["full", pytest.param("last block", marks=pytest.mark.exhaustive)])
def test_a_resumed_run_repeats_the_step_that_was_lost(alone: Callable[..., Trained], method: str) -> None:
    _, _, second, resumed = alone(torch.float64, method, FUNCTION).metrics
    assert resumed == second
    records = alone(torch.float64, method, FUNCTION).records
    assert records[-1] == records[-2]


EVERY = pytest.mark.exhaustive
ON_TWO_RANKS = [
    ("fsdp", torch.float64, "full", FUNCTION),
    *(
        pytest.param(strategy, dtype, method, rewards, marks=EVERY)
        for strategy, dtype in {
            "ddp": torch.float64,
            "fsdp": torch.float64,
            "zero1": torch.float32,
            "zero2": torch.float32,
        }.items()
        for method in METHODS
        for rewards in ({}, FUNCTION)
        if (strategy, method, bool(rewards)) != ("fsdp", "full", True)
    ),
    *(
        pytest.param("zero3", torch.float32, method, rewards | {"algorithm": {"name": "grpo"}}, marks=EVERY)
        for method in METHODS
        for rewards in ({}, FUNCTION)
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "dtype", "method", "more"), ON_TWO_RANKS)
def test_two_ranks_sample_and_measure_what_one_does(
    ranks: Ranks,
    tiny_model_dir: Path,
    tmp_path: Path,
    alone: Callable[..., Trained],
    strategy: str,
    dtype: torch.dtype,
    method: str,
    more: dict[str, Any],
) -> None:
    expected = alone(dtype, method, more)
    for rank, found in enumerate(ranks.run(train_whole, tiny_model_dir, tmp_path, strategy, dtype, method, more)):
        assert len(found.metrics) == len(expected.metrics) == 4
        for metrics, one in zip(found.metrics, expected.metrics, strict=True):
            assert metrics == pytest.approx(one, rel=TOLERANCE[dtype], abs=TOLERANCE[dtype])
        said = [[record.response_ids for record in records] for records in found.records]
        told = [[record.response_ids for record in records] for records in expected.records]
        assert said == ([] if rank else told)


@pytest.fixture(scope="module")
def alone(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """One rank's run, by precision, method and terms."""
    found: dict[str, Trained] = {}

    def of(dtype: torch.dtype, method: str, more: dict[str, Any]) -> Trained:
        key = f"{dtype} {method} {more}"
        if key not in found:
            home = tmp_path_factory.mktemp("alone")
            found[key] = train_whole(_tiny_model, home, "single", dtype, method, more)
        return found[key]

    return of


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_runs_in_half_precision(tiny_model_dir: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    run = whole_run(tiny_model_dir, tmp_path, dtype=dtype, **GRPO)
    metrics = rl_step(run, 1)
    assert metrics["sync_gap"] < 0.05
    assert all(value.dtype == torch.float32 for value in run.learner.model.parameters_of(POLICY).values())
    assert prompts_of(run, 2)
