"""Dynamic sampling: other prompts in place of those whose answers all have one score (DAPO, arXiv 2503.14476)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.algorithms.credit import answer_scores
from triptych.data.batches import epoch_order
from triptych.data.encode import PromptExample
from triptych.recipe import Rl
from triptych.stages.rl.finite import check_scores
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.worker import RlWorker
from triptych.train.clock import Clock


def draw(worker: RlWorker, step: int, prompts: Sequence[PromptExample], clock: Clock) -> tuple[Samples, Tensor]:
    """Answers to the prompts of a step, counted from 1, and their scores [N]; every rank gets the same.

    Where the algorithm samples dynamically, answers to other prompts follow, in as many rounds as it may take, until as
    many prompts as were asked for have answers of different scores.

    Raises:
        RunError: a score is no finite number.
    """
    samples, scores = _scored(worker, prompts, f"{step - 1}", clock)
    for number in range(1, 1 + (worker.stage.algorithm.more_rounds or 0)):
        missing = len(prompts) - len({samples.groups[row] for row in rows_with_spread(worker.stage, samples, scores)})
        others = _others(worker, step, samples.prompts)[:missing]
        if not others:
            break
        more, their_scores = _scored(worker, others, f"{step - 1}+{number}", clock)
        samples, scores = samples.joined(more), torch.cat([scores, their_scores])
    return samples, scores


def rows_with_spread(stage: Rl, samples: Samples, scores: Tensor) -> list[int]:
    """Answers, by their places, to prompts whose answers do not all have one score, after its clip and penalty."""
    final = answer_scores(scores, samples.truncated, stage).tolist()
    found: dict[int, set[float]] = {}
    for group, score in zip(samples.groups, final, strict=True):
        found.setdefault(group, set()).add(score)
    return [row for row, group in enumerate(samples.groups) if len(found[group]) > 1]


def learned_rows(stage: Rl, samples: Samples, scores: Tensor) -> list[int]:
    """Answers, by their places, that are learned from: with dynamic sampling, those of `rows_with_spread`."""
    if stage.algorithm.more_rounds is None:
        return list(range(len(scores)))
    return rows_with_spread(stage, samples, scores)


def _scored(worker: RlWorker, prompts: Sequence[PromptExample], label: str, clock: Clock) -> tuple[Samples, Tensor]:
    samples = worker.sample(prompts, label, worker.stage.rollout.sampling)
    clock.lap("sample")
    scores = worker.scores(samples)
    check_scores(worker, samples, scores)
    clock.lap("score")
    return samples, scores


def _others(worker: RlWorker, step: int, asked: Sequence[PromptExample]) -> list[PromptExample]:
    """Prompts that were not asked in this step, in an order that follows from the step: a step done again is the same.

    Steps to come ask them too, in their turn.
    """
    known = {id(prompt) for prompt in asked}
    order = epoch_order(len(worker.prompts), worker.ctx.recipe.seed, -step)
    return [worker.prompts[place] for place in order if id(worker.prompts[place]) not in known]
