"""One step of reinforcement learning, whatever the algorithm."""

import math

from triptych.algorithms.base import Credit, Scored
from triptych.data.batches import epoch_order
from triptych.data.encode import PromptExample
from triptych.recipe import POLICY
from triptych.stages.recorder import memory
from triptych.stages.rl.finite import check_minibatches, check_passes
from triptych.stages.rl.rewarding import learned_scores, score_answers
from triptych.stages.rl.rollout_log import write_rollouts
from triptych.stages.rl.samples import Samples, moments
from triptych.stages.rl.sync import PROBES, probe, sync_policy
from triptych.stages.rl.worker import RlWorker
from triptych.train.clock import Clock


def rl_step(worker: RlWorker, step: int) -> dict[str, float]:
    """Take step `step`, counted from 1; every rank calls it and gets the same metrics.

    Raises:
        RunError: a reward gives too few scores, or a log-probability or a value is no finite number; nothing has been
            learned from the step.
    """
    clock = Clock()

    # 1. Answers of the engines, which run the weights of the step before.
    samples = worker.sample(prompts_of(worker, step), f"{step - 1}", worker.stage.rollout.sampling)
    clock.lap("sample")

    # 2. A score of each answer; those that have none are left out of all that follows, but for the record.
    sampled, rewarded = samples, score_answers(worker, samples)
    samples = sampled.of_rows(rewarded.kept)
    check_minibatches(worker, samples)
    scores = learned_scores(worker, samples, rewarded)
    clock.lap("score")

    # 3. Policy, and reference and critic where the algorithm needs them, look at the answers.
    scored = worker.forward_passes(samples, scores)
    check_passes(worker, samples, scored)
    clock.lap("forward")

    # 4. Credit of each token.
    kl_coef = worker.kl_coef
    credit = worker.algorithm.credit(scored, kl_coef)
    clock.lap("advantages")

    # 5. Update. The check after the sync tells new weights from old ones by log-probabilities of some answers under
    # both, and after the update nobody can compute the old ones: so they are asked for before.
    before_update = probe(worker, samples.records[:PROBES])
    updates = update(worker, step, samples, credit)
    clock.lap("update")

    # 6. New weights in the engines, and the next step's coefficient.
    if worker.kl is not None and scored.kl is not None and math.isfinite(scored.kl):
        worker.kl.update(scored.kl, len(samples.records))
    synced = sync_policy(worker, step, before_update)
    clock.lap("sync")

    # 7. A record of the answers.
    if worker.learner.group.rank == 0:
        write_rollouts(worker, step, sampled, rewarded)
    metrics = answer_metrics(scored, kl_coef) | rewarded.metrics()
    clock.lap("record")
    seconds = {f"seconds_{phase}": taken for phase, taken in clock.seconds.items()}
    return metrics | memory(worker.learner) | updates | synced | seconds


def prompts_of(worker: RlWorker, step: int) -> list[PromptExample]:
    """The prompts of a step: every epoch has each once, in an order of its own."""
    count, known = worker.stage.rollout.prompts_per_step, len(worker.prompts)
    prompts = []
    for number in range((step - 1) * count, step * count):
        epoch, position = divmod(number, known)
        prompts.append(worker.prompts[epoch_order(known, worker.ctx.recipe.seed, epoch)[position]])
    return prompts


def update(worker: RlWorker, step: int, samples: Samples, credit: Credit) -> dict[str, float]:
    """The optimiser steps on one batch of samples: a fresh order each epoch, every sample once an epoch."""
    batch, learner, count = worker.stage.train.batch, worker.learner, len(samples.records)
    totals: dict[str, float] = {}
    for epoch in range(batch.epochs):
        order = epoch_order(count, worker.ctx.recipe.seed, (step - 1) * batch.epochs + epoch)
        for part in range(batch.minibatches):
            rows = order[part * count // batch.minibatches : (part + 1) * count // batch.minibatches]
            batches = [micro for _, micro in samples.micro_batches(learner, rows, credit.columns())]
            for objective in worker.objectives:
                before = "" if objective.role == POLICY else "value_"
                for name, number in learner.step(objective, batches).metrics.items():
                    share = number / (batch.epochs * batch.minibatches)
                    totals[before + name] = totals.get(before + name, 0.0) + share
    return totals


def answer_metrics(scored: Scored, kl_coef: float) -> dict[str, float]:
    """Metrics of a step's answers; `kl`, and the coefficient that it was weighted with, where there is a reference."""
    mask = scored.mask
    gap = (scored.old - scored.rollout).abs()[mask]
    kl = {} if scored.kl is None else {"kl": scored.kl, "kl_coef": kl_coef}
    return {
        **moments("reward", scored.scores),
        **kl,
        "entropy": scored.entropy[mask].mean().item(),
        "response_length": mask.sum(dim=1).float().mean().item(),
        "truncated": scored.truncated.float().mean().item(),
        "logprob_gap": gap.mean().item(),
        "logprob_gap_max": gap.max().item(),
        "tokens": float(mask.sum()),
    }
