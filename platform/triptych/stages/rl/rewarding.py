"""Scores of a step's answers by all rewards of the recipe, the same on every rank."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from triptych.errors import RunError
from triptych.recipe import Rl
from triptych.recipe.reward import CalledReward, ModelReward, labels
from triptych.rewards.asking import Asking, Failed
from triptych.rewards.base import Answer, Given
from triptych.rewards.table import REWARDS
from triptych.stages.rl.finite import check_scores, shown_answer
from triptych.stages.rl.samples import Samples, moments
from triptych.stages.rl.terms import Terms
from triptych.stages.rl.worker import RlWorker

SHOWN = 3
"""Answers without a score that the log shows of a reward and a step."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rewarded:
    """Scores of N answers; NaN stands for none."""

    parts: Mapping[str, Tensor]
    """Label of a reward -> its scores [N]."""
    weights: Sequence[float]
    """Weight of each reward in the sum."""
    failed: Tensor
    """[N] bool: answers that a reward gave no score although it should, or whose environment failed; they are left out
    of the step."""

    @cached_property
    def total(self) -> Tensor:
        """[N]: weighted sums over the rewards that judge an answer; NaN where one failed, or none judges it.

        Where no reward has a weight, there is nothing to sum: 0.
        """
        weighted = zip(self.weights, self.parts.values(), strict=True)
        terms = [weight * scores for weight, scores in weighted if weight != 0.0] or [torch.zeros(len(self.failed))]
        found = terms[0].nan_to_num(nan=0.0)
        for term in terms[1:]:
            found = found + term.nan_to_num(nan=0.0)
        judged = torch.stack([term.isfinite() for term in terms]).any(dim=0)
        return found.masked_fill(self.failed | ~judged, torch.nan)

    def joined(self, other: "Rewarded") -> "Rewarded":
        """These scores, then those of other answers."""
        parts = {label: torch.cat([scores, other.parts[label]]) for label, scores in self.parts.items()}
        return Rewarded(parts, self.weights, torch.cat([self.failed, other.failed]))

    @property
    def kept(self) -> list[int]:
        """Numbers of the answers that have a score."""
        return self.total.isfinite().nonzero().flatten().tolist()

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Mean and deviation of the sums, mean of each part, and how many answers have no score."""
        known = {f"{prefix}reward_{name}": scores[scores.isfinite()] for name, scores in self.parts.items()}
        means = {name: scores.mean().item() for name, scores in known.items() if len(scores)}
        missing = {f"{prefix}reward_failed": float(len(self.failed) - len(self.kept))}
        return moments(f"{prefix}reward", self.total[self.kept]) | means | missing


def score_answers(worker: RlWorker, samples: Samples, terms: Terms | None = None) -> Rewarded:
    """Ask rewards about the answers, by default all that are learned from. Every rank calls it, and gets the same.

    Raises:
        RunError: a reward model gave no finite number, another reward failed for more answers than it may, or no
            answer has a score.
    """
    asked = terms or worker.terms
    texts = worker.texts([record.last_turn for record in samples.records])
    prompts = worker.texts([record.prompt_ids for record in samples.records])
    answers = samples.answers(texts, prompts)
    by_number = _of_models(worker, samples, asked, answers)
    failed = samples.failed.clone()
    for number, given in _of_scorers(worker, asked, answers).items():
        failed |= _checked(worker, samples, asked, number, given)
        by_number[number] = torch.tensor([score if isinstance(score, float) else torch.nan for score in given])
    parts = {label: by_number[number] for number, label in enumerate(labels(asked.rewards))}
    found = Rewarded(parts, [one.weight for one in asked.rewards], failed)
    if not found.kept:
        where = asked.fields[0].rsplit(".", 1)[0]
        raise RunError(f"stages.{worker.ctx.name}.{where}: none of {len(answers)} answers has a score")
    return found


def learned_scores(worker: RlWorker, samples: Samples, rewarded: Rewarded) -> Tensor:
    """[N]: the sums as the algorithm gets them; NaN for answers without one.

    Normalised by all steps up to this one, where the recipe says so; then the fixed score of those that were cut.
    """
    scores = rewarded.total
    if worker.running is not None:
        worker.running.update(scores[rewarded.kept])
        scores = worker.running.normalized(scores)
    return with_fixed_scores(worker.stage, samples, scores)


def with_fixed_scores(stage: Rl, samples: Samples, scores: Tensor) -> Tensor:
    """[N]: `missing_eos_score` in place of the scores of answers that were cut, where the recipe has it."""
    if stage.missing_eos_score is None:
        return scores
    return scores.masked_fill(samples.truncated & scores.isfinite(), stage.missing_eos_score)


def _of_models(worker: RlWorker, samples: Samples, terms: Terms, answers: Sequence[Answer]) -> dict[int, Tensor]:
    """Scores [N] by number of the reward: passes of all ranks together."""
    found = {}
    for number in terms.roles:
        scores, reward = model_scores(worker, samples, terms, number, answers), terms.rewards[number]
        if isinstance(reward, ModelReward) and reward.normalized_by == "policy":
            constants = worker.constants[reward.stage]
            scores = (scores - constants.mean) / constants.std
        found[number] = scores
    return found


def model_scores(worker: RlWorker, samples: Samples, terms: Terms, number: int, answers: Sequence[Answer]) -> Tensor:
    """Scores [N] by a reward model as it normalises them itself. RunError: one is no finite number."""
    settings = terms.rewards[number]
    model = REWARDS[settings.name](settings, terms.roles[number])  # type: ignore[arg-type]
    scores = model.score(answers, partial(samples.forward, worker.learner))
    check_scores(worker, samples, terms, number, scores)
    return scores


def _of_scorers(worker: RlWorker, terms: Terms, answers: Sequence[Answer]) -> dict[int, list[Given]]:
    """Scores by number of the reward: the first rank asks, all others wait for what it was told."""
    if not any(isinstance(one, CalledReward) for one in terms.rewards):
        return {}
    asks = worker.learner.group.rank == 0
    return worker.learner.group.broadcast(asyncio.run(_asked(terms, answers)) if asks else {})


async def _asked(terms: Terms, answers: Sequence[Answer]) -> dict[int, list[Given]]:
    """What each scorer says; all are asked at once."""

    async def ask(number: int) -> list[Given]:
        settings = terms.rewards[number]
        assert isinstance(settings, CalledReward)
        return list(await terms.scorers[number].score(answers, Asking(settings.calls)))

    found = await asyncio.gather(*map(ask, terms.scorers))
    return dict(zip(terms.scorers, found, strict=True))


def _checked(worker: RlWorker, samples: Samples, terms: Terms, number: int, given: Sequence[Given]) -> Tensor:
    """[N] bool: the answers that a reward failed for, of which the log shows some.

    Raises:
        RunError: they are more than it may fail for.
    """
    reasons = {row: score.reason for row, score in enumerate(given) if isinstance(score, Failed)}
    settings, name = terms.rewards[number], terms.place(number)
    assert isinstance(settings, CalledReward)
    shown = [f"{shown_answer(worker, samples, row)}: {reasons[row]}" for row in list(reasons)[:SHOWN]]
    share = f"no score of {len(reasons)} of {len(given)} answers"
    if len(reasons) > settings.calls.max_failed * len(given):
        raise RunError(
            f"{name}: {share}, and calls.max_failed allows a share of {settings.calls.max_failed:g}. Nothing was "
            f"learned from this step. {shown[0]}"
        )
    if reasons and worker.learner.group.rank == 0:
        log.warning("%s: %s, which are left out of the step: %s", name, share, "; ".join(shown))
    return torch.tensor([row in reasons for row in range(len(given))])
