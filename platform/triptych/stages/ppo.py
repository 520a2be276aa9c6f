"""Proximal policy optimisation from a reward model, with the answers sampled by a pool of engines.

Four roles on one base: the policy starts as a trainable copy of the SFT adapter and the reference is a frozen one; the
critic starts as a trainable copy of the reward model, head included. Every rank runs the same code; rank 0 talks to the
pool and broadcasts what it said.
"""

import json
from typing import Any

import torch
from torch import Tensor

from triptych import storage
from triptych.data import encode_prompts, load_rows
from triptych.data.batches import epoch_order
from triptych.engines.base import SampleRequest
from triptych.errors import UserError
from triptych.models.adapter import Adapter, save_adapter
from triptych.models.peft_files import largest_rank
from triptych.objectives.advantages import gae, whiten
from triptych.objectives.kl import kl_penalty
from triptych.objectives.policy import importance_weights
from triptych.observe.metrics import PpoMetrics
from triptych.recipe import CRITIC, POLICY, REFERENCE, Reward, Rl, Source
from triptych.recipe.refusals import as_policy, is_lora
from triptych.registry import AdapterVersion
from triptych.rollout.pool import RolloutPool
from triptych.stages.context import StageContext, begin, finish, measured, parent
from triptych.stages.meter import memory
from triptych.stages.models import tokenizer_of
from triptych.stages.ppo_evaluation import evaluate, write_rollouts
from triptych.stages.ppo_run import Run, request, resume, save, start
from triptych.stages.ppo_sync import PROBES, first_sync, probe, sync_policy
from triptych.stages.recorder import Recorder
from triptych.stages.reward import check_gate
from triptych.stages.samples import Samples
from triptych.stages.supervised import adapter_of
from triptych.stages.table import Table
from triptych.train.clock import Clock
from triptych.train.on_ray import launch
from triptych.train.tasks.forward import response_values
from triptych.train.tasks.rl import PolicyUpdate, ValueUpdate


def run(ctx: StageContext[Rl]) -> AdapterVersion:
    """Prompts -> rollouts and updates -> registered policy. Goes on from where an earlier call stopped."""
    stage = ctx.stage
    reward, reward_version = parent(ctx, stage.reward, "reward_model")
    if isinstance(gate := ctx.recipe.stages.get(stage.reward), Reward):
        check_gate(stage.reward, gate, reward_version.metrics)  # it may have been raised since
    policy, policy_version = parent(ctx, stage.policy, "policy")
    if reason := as_policy(policy.method):
        raise UserError(f"stages.{ctx.name}.policy: {policy_version.ref}: {reason}")
    tables = {split: _encode(ctx, source) for split, source in stage.data.splits().items()}
    parents = {policy_version.ref: policy_version.sha256, reward_version.ref: reward_version.sha256}
    inputs = begin(ctx, tables, parents)
    if storage.read_manifest(ctx.artifact) is None:
        pool = start_pool(ctx, policy)
        try:
            config = {"ctx": ctx, "pool": pool, "policy": policy, "reward": reward}
            launch(ctx.name, _train, config, stage.train.workers, storage.join(ctx.folder, "ray"))
        finally:
            pool.close()
    return finish(ctx, inputs, "policy", measured(ctx))


def start_pool(ctx: StageContext[Rl], policy: Adapter) -> RolloutPool:
    """The engines, for policies of this one's method and rank; they run merged weights where it is no LoRA."""
    stage = ctx.stage
    native = is_lora(policy.method)
    rollout = stage.rollout if native else stage.rollout.model_copy(update={"sync": "merged"})
    return RolloutPool.start(
        model_dir=str(ctx.base_dir),
        dtype=ctx.recipe.model.dtype,
        rollout=rollout,
        lora_r=largest_rank(policy.configs["lora"].to_dict()) if native else 1,
        max_model_len=stage.shape().context,
        stop_token_ids=[tokenizer_of(ctx).eos_token_id],
        base=ctx.recipe.model,
    )


def ppo_step(run: Run, step: int) -> dict[str, float]:
    """One step: sample, score, look back, reward, advantage, update, sync, record. Metrics back."""
    ppo, learner, clock = run.stage.algorithm, run.learner, Clock()

    samples = run.sample(requests_of(run, step), run.stage.rollout.sampling)
    mask = samples.mask
    clock.lap("sample")

    scores = run.scores(samples)
    clock.lap("score")

    old_logprobs, entropy = run.logprobs_and_entropy(samples, POLICY)
    reference_logprobs = run.logprobs(samples, REFERENCE)
    old_values = samples.forward(learner, CRITIC, response_values)
    clock.lap("forward")

    rewards = token_rewards(run, samples, scores, old_logprobs, reference_logprobs)
    advantages, returns = gae(rewards, old_values, mask, ppo.gamma, ppo.lam)
    if ppo.whiten:
        advantages = whiten(advantages, mask)
    importance = run.stage.importance
    weights = importance_weights(
        old_logprobs, samples.rollout_logprobs, mask, level=importance.level, cap=importance.cap
    )
    clock.lap("advantages")

    columns = {"old_logprobs": old_logprobs, "advantages": advantages, "weights": weights}
    before_update = probe(run, samples.records[:PROBES])
    updates = update(run, step, samples, columns | {"old_values": old_values, "returns": returns})
    clock.lap("update")

    kl = ((old_logprobs - reference_logprobs) * mask).sum(dim=1).mean().item()
    if run.kl is not None:
        run.kl.update(kl, len(samples.records))
    synced = sync_policy(run, step + 1, before_update)
    clock.lap("sync")

    if learner.group.rank == 0:
        write_rollouts(run.ctx, step, samples, scores)
    gap = (old_logprobs - samples.rollout_logprobs).abs()[mask]
    clock.lap("record")
    return (
        {
            "reward": scores.mean().item(),
            "reward_std": scores.std().item(),
            "kl": kl,
            "kl_coef": run.kl_coef,
            "entropy": entropy[mask].mean().item(),
            "response_length": mask.sum(dim=1).float().mean().item(),
            "truncated": samples.truncated.float().mean().item(),
            "logprob_gap": gap.mean().item(),
            "logprob_gap_max": gap.max().item(),
            "tokens": float(mask.sum()),
        }
        | memory(learner)
        | updates
        | synced
        | {f"seconds_{phase}": seconds for phase, seconds in clock.seconds.items()}
    )


def requests_of(run: Run, step: int) -> list[SampleRequest]:
    """The prompts of a step, each `samples_per_prompt` times; every answer has a lease and a seed of its own."""
    rollout, seed = run.stage.rollout, run.ctx.recipe.seed
    first = step * rollout.prompts_per_step
    requests = []
    for number in range(first, first + rollout.prompts_per_step):
        epoch, position = divmod(number, len(run.prompts))
        prompt = run.prompts[epoch_order(len(run.prompts), seed, epoch)[position]]
        leases = [f"{step}/{number - first}/{copy}" for copy in range(rollout.samples_per_prompt)]
        requests += [request(prompt, lease, seed) for lease in leases]
    return requests


def token_rewards(run: Run, samples: Samples, scores: Tensor, old: Tensor, reference: Tensor) -> Tensor:
    """[N, R]: minus the KL penalty at every answer token, plus the score, once, at its last.

    Ziegler et al. 2019 (arXiv 1909.08593), equation 2. An answer that was cut by its length loses a fixed amount.
    """
    stage, mask = run.stage, samples.mask
    rewards = torch.where(mask, -run.kl_coef * kl_penalty(old, reference, kind=stage.kl.kind), 0.0)
    final = scores.clamp(-stage.reward_clip, stage.reward_clip) - stage.missing_eos_penalty * samples.truncated
    last = mask.sum(dim=1) - 1
    return rewards.index_put((torch.arange(len(last)), last), final, accumulate=True)


def update(run: Run, step: int, samples: Samples, columns: dict[str, Tensor]) -> dict[str, float]:
    """The optimiser steps on one batch of samples: a fresh order each epoch, every sample once an epoch."""
    ppo, batch, learner = run.stage.algorithm, run.stage.train.batch, run.learner
    policy = PolicyUpdate(POLICY, ppo.clip, run.stage.rollout.sampling.temperature)
    value = ValueUpdate(CRITIC, ppo.value_clip)
    count = len(samples.records)
    totals: dict[str, float] = {}
    for epoch in range(batch.epochs):
        order = epoch_order(count, run.ctx.recipe.seed, step * batch.epochs + epoch)
        for part in range(batch.minibatches):
            rows = order[part * count // batch.minibatches : (part + 1) * count // batch.minibatches]
            batches = [micro for _, micro in samples.micro_batches(learner, rows, columns)]
            policy_report, value_report = learner.step(policy, batches), learner.step(value, batches)
            metrics = policy_report.metrics | {f"value_{k}": v for k, v in value_report.metrics.items()}
            for name, number in metrics.items():
                totals[name] = totals.get(name, 0.0) + number / (batch.epochs * batch.minibatches)
    return totals


def _train(config: dict[str, Any]) -> None:
    """On every worker of the Ray Train group."""
    ctx: StageContext[Rl] = config["ctx"]
    stage, run = ctx.stage, start(config)
    done, shown = resume(run), ("reward", "kl", "logprob_gap")
    with Recorder(ctx, PpoMetrics, run.learner.group.rank, shown, done=done, total=stage.train.steps) as recorder:
        first_sync(run, done)
        if run.heldout and done == 0:
            evaluate(run, "before")
        for step in range(done + 1, stage.train.steps + 1):
            row = {"step": step} | ppo_step(run, step - 1)
            if (
                run.heldout
                and stage.train.evaluate_every
                and step % stage.train.evaluate_every == 0
                and step < stage.train.steps
            ):
                row |= evaluate(run, f"step-{step:08d}")
            recorder.record(row)
            if step % stage.train.checkpoint_every == 0 or step == stage.train.steps:
                save(run, recorder, step)
    run.writer.wait()
    metrics = evaluate(run, "after") if run.heldout else {}
    weights = run.learner.weights(POLICY)
    if run.learner.group.rank == 0:
        with storage.committed(ctx.artifact) as folder:
            save_adapter(folder, adapter_of(run.policy_method, weights, "policy"), ctx.about())
            (folder / "metrics.json").write_text(json.dumps(metrics))


def _encode(ctx: StageContext[Rl], source: Source) -> Table:
    """Load and encode a source's prompts."""
    rows = load_rows(source, "prompts")
    prompts = encode_prompts(
        rows.items, tokenizer_of(ctx), ctx.stage.rollout.max_prompt_tokens, source.max_bad_rows - len(rows.bad)
    )
    return Table({"prompt_ids": prompts}, rows.digest)
