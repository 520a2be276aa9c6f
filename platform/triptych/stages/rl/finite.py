"""Refusal of numbers that are none: one of them among a step's answers would spread to all by whitening."""

from collections.abc import Mapping

import torch
from torch import Tensor

from triptych.algorithms.base import Scored
from triptych.errors import RunError
from triptych.recipe import CRITIC, POLICY, REFERENCE, TEACHER
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.terms import Terms
from triptych.stages.rl.worker import RlWorker


def check_scores(worker: RlWorker, samples: Samples, terms: Terms, number: int, scores: Tensor) -> None:
    """RunError where a reward model gave other than one finite score for each answer; it names prompt and answer.

    `number`: of the reward in `terms`.
    """
    name = terms.place(number)
    if scores.shape != (len(samples.records),):
        raise RunError(
            f"{name}: its scores have the shape {list(scores.shape)} for {len(samples.records)} answers; allowed: one "
            "for each answer"
        )
    bad = scores.isfinite().logical_not()
    if bad.any():
        row = int(bad.nonzero()[0])
        raise RunError(
            f"{name}: its score of {shown_answer(worker, samples, row)} is {scores[row].item()}, and so {_share(bad)}; "
            "allowed: finite numbers. Nothing was learned from this step: mend the reward, or leave out the prompt"
        )


def shown_answer(worker: RlWorker, samples: Samples, row: int) -> str:
    """An answer and its prompt, shortened, for messages."""
    record = samples.records[row]
    prompt, answer = worker.texts([record.prompt_ids, record.response_ids])
    return f"the answer {_shown(answer)} to the prompt {_shown(prompt)}"


def check_passes(worker: RlWorker, samples: Samples, scored: Scored) -> None:
    """RunError where log-probabilities or values of an answer's tokens are not finite; it names role and prompt."""
    for source, numbers in _passes(scored).items():
        bad = (numbers.isfinite().logical_not() & scored.mask).any(dim=1)
        if bad.any():
            raise RunError(
                f"stages.{worker.ctx.name}: {source} of {shown_answer(worker, samples, int(bad.nonzero()[0]))} are not "
                f"finite, and so {_share(bad)}. Nothing was learned from this step: the weights have diverged, or "
                f"{worker.ctx.recipe.model.dtype} is too narrow for them; lower optimizer.lr, or take another "
                "model.dtype"
            )


def _passes(scored: Scored) -> Mapping[str, Tensor]:
    found = {
        "the engine's log-probabilities": scored.rollout,
        f"the log-probabilities by the {POLICY}": scored.old,
        f"the log-probabilities by the {REFERENCE}": scored.reference,
        f"the values by the {CRITIC}": scored.values,
        f"the log-probabilities by the {TEACHER}": scored.teacher,
    }
    return {source: numbers for source, numbers in found.items() if numbers is not None}


def _shown(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:50]} ... {text[-25:]}")


def _share(bad: Tensor) -> str:
    return f"for {int(torch.count_nonzero(bad))} of {len(bad)} answers"
