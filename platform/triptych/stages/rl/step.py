"""One step of reinforcement learning, whatever the algorithm."""

import math
from typing import Literal

from torch import Tensor

from triptych.algorithms.base import Credit, Scored
from triptych.algorithms.credit import answer_scores
from triptych.data.batches import epoch_order
from triptych.data.encode import PromptExample
from triptych.objectives.policy import importance_metrics
from triptych.recipe import POLICY
from triptych.stages.recorder import memory
from triptych.stages.rl.dynamic import draw, learned_rows
from triptych.stages.rl.finite import check_passes
from triptych.stages.rl.flat_groups import flat_share
from triptych.stages.rl.rewarding import Rewarded, learned_scores
from triptych.stages.rl.rollout_log import Learned, write_rollouts
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.sync import PROBES, probe, sync_policy
from triptych.stages.rl.waiting import busy_seconds, staleness, waiting
from triptych.stages.rl.worker import RlWorker
from triptych.train.clock import Clock


def rl_step(worker: RlWorker, step: int) -> dict[str, float]:
    """Take step `step`, counted from 1; every rank calls it and gets the same metrics.

    Raises:
        RunError: a reward gives too few scores, or a log-probability or a value is no finite number; nothing has been
            learned from the step.
    """
    busy, clock = busy_seconds(worker), Clock()

    # 1. Answers of the engines, which run the weights of the step before, and a score of each.
    drawn, rewarded = draw(worker, step, prompts_of(worker, step), clock)

    # 2. Those that are learned from, if there are any: they have a score, and with dynamic sampling not that of all
    # the others to their prompt.
    all_scores = learned_scores(worker, drawn, rewarded)
    rows = learned_rows(worker.stage, drawn, all_scores)
    told = spread(worker, drawn, all_scores) | staleness(worker.version, drawn.records)
    if not rows:
        metrics = recorded(worker, step, drawn, rewarded, None) | told
        return metrics | memory(worker.learner) | times(worker, busy, clock)
    samples, scores = drawn.of_rows(rows), all_scores[rows]

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

    # 6. New weights in the engines, and the next step's coefficient, which waits for a policy that learns.
    if worker.kl is not None and worker.learns(step) and scored.kl is not None and math.isfinite(scored.kl):
        worker.kl.update(scored.kl, len(samples.records))
    synced = sync_policy(worker, step, before_update)
    clock.lap("sync")

    # 7. A record of the answers.
    metrics = recorded(worker, step, drawn, rewarded, Learned(rows, scored, credit)) | answer_metrics(scored, kl_coef)
    metrics |= importance(scored, credit, worker.stage.importance.level) | told
    clock.lap("record")
    return metrics | memory(worker.learner) | updates | synced | times(worker, busy, clock)


def seconds_of(clock: Clock) -> dict[str, float]:
    """Seconds of each phase of a step."""
    return {f"seconds_{phase}": taken for phase, taken in clock.seconds.items()}


def times(worker: RlWorker, busy: float, clock: Clock) -> dict[str, float]:
    """Seconds of each phase, and how long engines and learner waited; `busy`: `busy_seconds` before the step."""
    return seconds_of(clock) | waiting(worker, busy_seconds(worker) - busy, clock.seconds)


def spread(worker: RlWorker, drawn: Samples, scores: Tensor) -> dict[str, float]:
    """`flat_groups`, of an algorithm that compares the answers to a prompt: the share with nothing to compare."""
    if not worker.stage.algorithm.grouped:
        return {}
    share = flat_share(drawn.groups, answer_scores(scores, drawn.truncated, worker.stage))
    return {} if share is None else {"flat_groups": share}


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
    parts = min(batch.minibatches, count)  # dynamic sampling and failed rewards may leave fewer answers
    found: dict[str, list[float]] = {}
    for epoch in range(batch.epochs):
        order = epoch_order(count, worker.ctx.recipe.seed, (step - 1) * batch.epochs + epoch)
        for part in range(parts):
            rows = order[part * count // parts : (part + 1) * count // parts]
            batches = [micro for _, micro in samples.micro_batches(learner, rows, credit.columns())]
            for objective in worker.updates(step):
                before = "" if objective.role == POLICY else "value_"
                for name, number in learner.step(objective, batches).metrics.items():
                    found.setdefault(before + name, []).append(number)
    return {name: sum(numbers) / len(numbers) for name, numbers in found.items()}


def recorded(
    worker: RlWorker, step: int, drawn: Samples, rewarded: Rewarded, learned: Learned | None
) -> dict[str, float]:
    """Write down all answers of a step; metrics of them. `learned`: those that were learned from, if any."""
    if worker.learner.group.rank == 0:
        write_rollouts(worker, step, drawn, rewarded, learned)
    dynamic, sampled = worker.stage.algorithm.more_rounds is not None, float(len(drawn.records))
    kept = 0 if learned is None else len(learned.rows)
    return {
        **rewarded.metrics(),
        "response_length": drawn.mask.sum(dim=1).float().mean().item(),
        "truncated": drawn.truncated.float().mean().item(),
        "tokens": float(drawn.mask.sum()),
        **({"sampled": sampled, "without_spread": 1.0 - kept / sampled} if dynamic else {}),
    }


def answer_metrics(scored: Scored, kl_coef: float) -> dict[str, float]:
    """Metrics of passes over a step's answers; `kl` and the coefficient of its penalty, where there is a reference."""
    mask = scored.mask
    gap = (scored.old - scored.rollout).abs()[mask]
    kl = {} if scored.kl is None else {"kl": scored.kl, "kl_coef": kl_coef}
    teacher = {} if scored.teacher_kl is None else {"teacher_kl": scored.teacher_kl}
    return {
        **kl,
        **teacher,
        "entropy": scored.entropy[mask].mean().item(),
        "logprob_gap": gap.mean().item(),
        "logprob_gap_max": gap.max().item(),
    }


def importance(scored: Scored, credit: Credit, level: Literal["token", "sequence"]) -> dict[str, float]:
    """Share of tokens whose importance weight a bound changed, and the effective sample size as a share of tokens."""
    sums = importance_metrics(scored.old, scored.rollout, credit.weights, scored.mask, level)
    found = {name: value.item() for name, value in sums.items()}
    count, squares = float(scored.mask.sum()), found["weight_sq"]
    return {
        "importance_bounded": found["bounded"] / count,
        "importance_ess": found["weight"] ** 2 / (count * squares) if squares else 0.0,
    }
