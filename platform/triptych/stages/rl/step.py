"""One step of reinforcement learning: sample, score, credit, update, sync."""

import torch
from torch import Tensor

from triptych.data.batches import epoch_order
from triptych.engines.base import SampleRequest
from triptych.objectives.advantages import gae, whiten
from triptych.objectives.kl import kl_penalty
from triptych.objectives.policy import importance_weights
from triptych.recipe import CRITIC, POLICY, REFERENCE
from triptych.stages.meter import memory
from triptych.stages.rl.evaluation import write_rollouts
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.sync import PROBES, probe, sync_policy
from triptych.stages.rl.worker import RlWorker, request
from triptych.train.clock import Clock
from triptych.train.tasks.forward import response_values
from triptych.train.tasks.rl import PolicyUpdate, ValueUpdate


def ppo_step(run: RlWorker, step: int) -> dict[str, float]:
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


def requests_of(run: RlWorker, step: int) -> list[SampleRequest]:
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


def token_rewards(run: RlWorker, samples: Samples, scores: Tensor, old: Tensor, reference: Tensor) -> Tensor:
    """[N, R]: minus the KL penalty at every answer token, plus the score, once, at its last.

    Ziegler et al. 2019 (arXiv 1909.08593), equation 2. An answer that was cut by its length loses a fixed amount.
    """
    stage, mask = run.stage, samples.mask
    rewards = torch.where(mask, -run.kl_coef * kl_penalty(old, reference, kind=stage.kl.kind), 0.0)
    final = scores.clamp(-stage.reward_clip, stage.reward_clip) - stage.missing_eos_penalty * samples.truncated
    last = mask.sum(dim=1) - 1
    return rewards.index_put((torch.arange(len(last)), last), final, accumulate=True)


def update(run: RlWorker, step: int, samples: Samples, columns: dict[str, Tensor]) -> dict[str, float]:
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
