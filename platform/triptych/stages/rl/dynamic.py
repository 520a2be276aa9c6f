"""Dynamic sampling: other prompts in place of those whose answers all have one score (DAPO, arXiv 2503.14476)."""

import math
from collections.abc import Sequence

from torch import Tensor

from triptych.algorithms.credit import answer_scores
from triptych.data.batches import epoch_order
from triptych.data.encode import PromptExample
from triptych.recipe import Rl
from triptych.stages.rl.rewarding import Rewarded, score_answers, with_fixed_scores
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.worker import RlWorker
from triptych.train.clock import Clock


def draw(worker: RlWorker, step: int, prompts: Sequence[PromptExample], clock: Clock) -> tuple[Samples, Rewarded]:
    """Answers to the prompts of a step, counted from 1, and their scores; every rank gets the same.

    Where the algorithm samples dynamically, answers to other prompts follow, in as many rounds as it may take, until as
    many prompts as were asked for have answers of different scores.

    Raises:
        RunError: see `score_answers`.
    """
    samples, rewarded = _scored(worker, prompts, f"{step - 1}", clock)
    for number in range(1, 1 + (worker.stage.algorithm.more_rounds or 0)):
        rows = rows_with_spread(worker.stage, samples, with_fixed_scores(worker.stage, samples, rewarded.total))
        missing = len(prompts) - len({samples.groups[row] for row in rows})
        others = _others(worker, step, samples.prompts)[:missing]
        if not others:
            break
        more, theirs = _scored(worker, others, f"{step - 1}+{number}", clock)
        samples, rewarded = samples.joined(more), rewarded.joined(theirs)
    return samples, rewarded


def rows_with_spread(stage: Rl, samples: Samples, scores: Tensor) -> list[int]:
    """Answers, by their places, that have a score, and not that of all to their prompt, after its clip and penalty."""
    final = answer_scores(scores, samples.truncated, stage).tolist()
    scored = [(row, samples.groups[row], score) for row, score in enumerate(final) if math.isfinite(score)]
    found: dict[int, set[float]] = {}
    for _, group, score in scored:
        found.setdefault(group, set()).add(score)
    return [row for row, group, _ in scored if len(found[group]) > 1]


def learned_rows(stage: Rl, samples: Samples, scores: Tensor) -> list[int]:
    """Answers, by their places, that are learned from: those with a score; dynamically, those of `rows_with_spread`."""
    if stage.algorithm.more_rounds is not None:
        return rows_with_spread(stage, samples, scores)
    rows: list[int] = scores.isfinite().nonzero().flatten().tolist()
    return rows


def _scored(worker: RlWorker, prompts: Sequence[PromptExample], label: str, clock: Clock) -> tuple[Samples, Rewarded]:
    samples = worker.sample(prompts, label, worker.stage.rollout.sampling)
    clock.lap("sample")
    rewarded = score_answers(worker, samples)
    clock.lap("score")
    return samples, rewarded


def _others(worker: RlWorker, step: int, asked: Sequence[PromptExample]) -> list[PromptExample]:
    """Prompts that were not asked in this step, in an order that follows from the step: a step done again is the same.

    Steps to come ask them too, in their turn.
    """
    known = {id(prompt) for prompt in asked}
    order = epoch_order(len(worker.prompts), worker.ctx.recipe.seed, -step)
    return [worker.prompts[place] for place in order if id(worker.prompts[place]) not in known]
