"""One RL run on the tiny model without Ray: the place where the tests of the step import what they test."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor

from tests.support.fake_pool import FakePool
from tests.support.gradient_cases import PAD, in_float64, make_model
from tests.support.one_process import Silent
from triptych.algorithms.base import Scored
from triptych.algorithms.credit import token_rewards as rewards_of_tokens
from triptych.data.encode import PromptExample
from triptych.engines.base import RolloutRecord, SampleRequest
from triptych.forward.roles import RoleModel
from triptych.models.adapter import Adapter, Normalization
from triptych.models.base import load_causal_lm
from triptych.objectives.kl import AdaptiveKL
from triptych.objectives.running import RunningMoments
from triptych.recipe import CRITIC, POLICY, Lora, Recipe, Rl
from triptych.recipe.stage import MEASURING
from triptych.rollout.pool import RolloutPool
from triptych.rollout.requests import request
from triptych.rollout.trajectory import Trajectory
from triptych.stages.context import StageContext
from triptych.stages.recorder import Recorder
from triptych.stages.rl.evaluation import evaluate
from triptych.stages.rl.rewarding import score_answers
from triptych.stages.rl.roles import add_roles, add_scoring_roles
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.step import prompts_of, rl_step, update
from triptych.stages.rl.stopping import stopping_of
from triptych.stages.rl.sync import first_sync
from triptych.stages.rl.worker import (
    RlWorker,
    optimizer_steps,
    optimizers_of,
    resume,
    save,
)
from triptych.stages.role_models import RoleModels
from triptych.stages.whole_model import WholeModel
from triptych.train.checkpoint import Writer
from triptych.train.learners import learner_of

__all__ = [
    "CRITIC",
    "POLICY",
    "RlWorker",
    "Samples",
    "Trained",
    "comparable",
    "evaluate",
    "first_step",
    "first_sync",
    "make_run",
    "pool_of",
    "prompts_of",
    "request",
    "requests_of",
    "resume",
    "rl_step",
    "samples_of",
    "save",
    "score_answers",
    "steps_of_each",
    "token_rewards",
    "train",
    "update",
    "with_terms",
]

METHOD = Lora(r=4, alpha=8)
PROMPTS = [[50, 61, 72, 83], [90, 81, 72], [50, 61, 72, 99, 100], [111, 122, 133], [140, 151, 162, 173, 184, 195]]
HELDOUT = [[201, 212, 223], [234, 245, 256, 267]]
MEASURED_ANEW = ("seconds", "memory_bytes", "engines_idle", "learner_waits")
"""Parts of the names of metrics that no two runs share."""
TRAINING = ("steps", "checkpoint_every", "evaluate_every", "stopping", "optimizer")
"""Terms of a run that are fields of `train`."""


def make_run(
    folder: Path,
    home: Path,
    *,
    strategy: str = "single",
    dtype: torch.dtype = torch.float64,
    whole: WholeModel | None = None,
    judges: Sequence[WholeModel] = (),
    packing: bool = True,
    **terms: Any,
) -> RlWorker:
    """What a rank holds at the start of a stage.

    `whole`: a policy that is no adapter; `judges`: the first reward models, where they are none; `terms`: see
    `with_terms`.
    """
    ctx = _context(folder, home, strategy, dtype)
    stage = _changed(ctx.stage, terms)
    ctx = replace(ctx, stage=stage)
    adapter, rewarding = _adapters(folder)
    policy = adapter if whole is None else whole
    models = RoleModels(lambda own: RoleModel(load_causal_lm(own or folder, dtype), packing=packing))
    critic = stage.algorithm.value_model is not None
    rewards: list[Adapter | WholeModel] = [*judges, *[rewarding] * (len(stage.reward_models) - len(judges))]
    teacher = None if stage.algorithm.teaching is None else _teacher(adapter)
    reward_roles = add_roles(models, policy, *rewards, reference=stage.needs_reference, critic=critic, teacher=teacher)
    measured_by = add_scoring_roles(models, MEASURING, [rewarding] * len(stage.measuring_models))
    if dtype == torch.float64:
        for model in models.each:
            in_float64(model)
    chosen = stage.train.workers.strategy
    learner = learner_of(models.each, optimizers_of(stage), optimizer_steps(stage), strategy=chosen)
    started = folder if whole is None or whole.folder is None else whole.folder
    kl = stage.kl
    return RlWorker(
        ctx=ctx,
        learner=learner,
        pool=cast(RolloutPool, FakePool(started, dtype)),
        teacher_pool=cast(RolloutPool, FakePool(folder, dtype)) if stage.algorithm.teaching_model else None,
        prompts=[PromptExample(ids, {"number": number}) for number, ids in enumerate(PROMPTS)],
        heldout={split: [PromptExample(ids, {}) for ids in HELDOUT] for split in stage.heldout_sets},
        policy=policy,
        reward_roles=reward_roles,
        writer=Writer(ctx.checkpoints, learner.group),
        kl=None if kl.target is None else AdaptiveKL(kl.coef, kl.target, kl.horizon),
        pad=PAD,
        stopping=stopping_of(ctx),
        running=RunningMoments() if stage.normalize_scores else None,
        measuring_roles=dict(zip(stage.measuring_models, measured_by, strict=True)),
    )


def _teacher(policy: Adapter) -> Adapter:
    """An adapter that answers otherwise than the policy does."""
    drawn = torch.Generator().manual_seed(5)
    weights = {name: value + 0.03 * torch.randn(value.shape, generator=drawn) for name, value in policy.weights.items()}
    return replace(policy, weights=weights)


def with_terms(run: RlWorker, **terms: Any) -> RlWorker:
    """The same run under other fields of the stage: its own, those of TRAINING, `epochs` or `minibatches`."""
    return replace(run, ctx=replace(run.ctx, stage=_changed(run.stage, terms)))


def first_step(folder: Path, home: Path) -> Callable[[], dict[str, float]]:
    """The first step of a run that is ready for it."""
    run = make_run(folder, home)
    first_sync(run, 0)
    return lambda: rl_step(run, 1)


def requests_of(run: RlWorker, step: int) -> list[SampleRequest]:
    """Requests of a step, counted from 1."""
    return run.requests(prompts_of(run, step), f"{step - 1}")


def token_rewards(run: RlWorker, samples: Samples, scores: Tensor, old: Tensor, reference: Tensor) -> Tensor:
    """Rewards [N, R] of tokens under the run's terms."""
    scored = Scored(
        scores=scores,
        groups=torch.tensor(samples.groups),
        mask=samples.mask,
        truncated=samples.truncated,
        rollout=samples.rollout_logprobs,
        old=old,
        entropy=torch.zeros_like(old),
        reference=reference,
    )
    return rewards_of_tokens(scored, run.stage, run.kl_coef)


def samples_of(records: Sequence[RolloutRecord]) -> Samples:
    """Answers to one prompt."""
    return Samples(list(map(Trajectory.of, records)), [PromptExample([], {})], [0] * len(records), PAD, 24, 0.7)


def pool_of(run: RlWorker) -> FakePool:
    """The fake behind the run's handle."""
    return cast(FakePool, run.pool)


@dataclass(frozen=True)
class Trained:
    """What a rank saw: metrics, and on rank 0 the answers, of each call that sampled."""

    metrics: list[dict[str, float]]
    """Of the evaluation before, of two steps, and of the second one resumed."""
    records: list[list[RolloutRecord]]


def train(folder: Path, home: Path, strategy: str, dtype: torch.dtype, more: dict[str, Any] | None = None) -> Trained:
    """A run of two steps, then its second step again from the checkpoint after the first; `more`: of `make_run`."""
    settings: dict[str, Any] = {"strategy": strategy, "dtype": dtype, "minibatches": 2, "kl": {"target": 1.0}}
    settings |= more or {}
    run = make_run(folder, home, **settings)
    first_sync(run, 0)
    metrics = [evaluate(run, "before"), rl_step(run, 1)]
    save(run, cast(Recorder, SimpleNamespace(flush=lambda step: None)), 1)
    metrics.append(rl_step(run, 2))
    run.writer.wait()
    run.learner.group.barrier()

    again = make_run(folder, home, **settings)
    first_sync(again, resume(again))
    metrics.append(rl_step(again, 2))
    return Trained(list(map(comparable, metrics)), pool_of(run).records + pool_of(again).records)


def steps_of_each(
    folder: Path, home: Path, strategy: str, terms: dict[str, dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Metrics of the first step, of two minibatches, under each of the terms."""
    found = {}
    for name, settings in terms.items():
        run = make_run(folder, home / name, strategy=strategy, minibatches=2, **settings)
        first_sync(run, 0)
        found[name] = comparable(rl_step(run, 1))
    return found


def comparable(metrics: dict[str, float]) -> dict[str, float]:
    """The metrics that follow from the samples and the weights."""
    return {name: value for name, value in metrics.items() if not any(part in name for part in MEASURED_ANEW)}


def _changed(stage: Rl, terms: dict[str, Any]) -> Rl:
    """The stage with other terms, all of them checked."""
    fields = stage.model_dump()
    for name, value in terms.items():
        place = fields["train"]["batch"] if name in ("epochs", "minibatches") else fields
        (fields["train"] if name in TRAINING else place)[name] = value
    return Rl.model_validate(fields)


def _context(folder: Path, home: Path, strategy: str, dtype: torch.dtype) -> StageContext[Rl]:
    sampling = {"max_new_tokens": 6, "temperature": 0.7}
    stage = {
        "kind": "rl",
        "policy": "sft@1",
        "rewards": [{"stage": "reward@1"}],
        "algorithm": {"critic": {"optimizer": {"lr": 0.01}}},
        "data": {"train": {"path": "prompts.jsonl"}, "heldout": {"path": "prompts.heldout.jsonl"}},
        "rollout": {"prompts_per_step": 3, "samples_per_prompt": 2, "sampling": sampling},
        "evaluation": sampling,
        "train": {
            "steps": 4,
            "optimizer": {"lr": 0.01},
            "batch": {"micro_tokens": 24},
            "workers": {"strategy": strategy, "count": 1 if strategy == "single" else 2},
        },
    }
    named = "float32" if dtype == torch.float64 else str(dtype).removeprefix("torch.")  # recipes know no float64
    model = {"base": str(folder), "dtype": named}
    recipe = Recipe.model_validate({"name": "tiny", "model": model, "stages": {"rl": stage}})
    loaded = recipe.stages["rl"]
    assert isinstance(loaded, Rl)
    return StageContext(
        recipe=recipe,
        name="rl",
        stage=loaded,
        run=str(home / "run"),
        base_dir=folder,
        base_fingerprint="tiny",
        registry_url=f"sqlite:///{home}/registry.db",
        artifacts=str(home / "artifacts"),
        progress=Silent(),
    )


@cache
def _adapters(folder: Path) -> tuple[Adapter, Adapter]:
    """A policy and a reward model with random weights, the same in every precision."""
    model = make_model(folder, torch.float32, roles=("policy", "critic"))
    head = {name: tensor.detach().clone() for name, tensor in model.heads["critic"].named_parameters()}
    scoring = Adapter(METHOD, model.adapter("critic"), "reward", head=head, normalization=Normalization(0.1, 0.5))
    return Adapter(METHOD, model.adapter("policy"), "lora"), scoring
