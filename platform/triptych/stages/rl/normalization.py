"""Normalisation of reward models by what the policy answers before it has learned anything."""

from triptych.models.adapter import Normalization
from triptych.recipe.reward import ModelReward
from triptych.stages.rl.rewarding import model_scores
from triptych.stages.rl.samples import Samples
from triptych.stages.rl.step import prompts_of
from triptych.stages.rl.terms import Terms
from triptych.stages.rl.worker import RlWorker

LEAST = 1e-6
"""Deviation of scores that are all alike."""


def normalize_by_policy(worker: RlWorker) -> None:
    """Measure the constants of reward models that ask for it, unless a checkpoint has them; every rank calls it.

    Mean and deviation (of the whole population) of the scores of one step's answers, which the engines sample from the
    policy that the stage starts from (Ziegler et al. 2019, arXiv 1909.08593, section 2.1).

    Raises:
        RunError: the answers did not arrive, or a reward model gave no finite number.
    """
    asked = {ref: place for ref, place in _asking(worker).items() if ref not in worker.constants}
    if not asked:
        return
    samples = _whole(worker.sample(prompts_of(worker, 1), "normalization", worker.stage.rollout.sampling))
    texts, prompts = ([""] * len(samples.records),) * 2  # a reward model reads tokens
    for ref, (terms, number) in asked.items():
        scores = model_scores(worker, samples, terms, number, samples.answers(texts, prompts)).double()
        worker.constants[ref] = Normalization(scores.mean().item(), max(scores.std(correction=0).item(), LEAST))


def _whole(samples: Samples) -> Samples:
    """The answers without those whose environment failed, which may not be all: steps leave them out too."""
    return samples.of_rows((~samples.failed).nonzero().flatten().tolist())


def _asking(worker: RlWorker) -> dict[str, tuple[Terms, int]]:
    """Each such reward model, and one of its places."""
    return {
        reward.stage: (terms, number)
        for terms in worker.all_terms
        for number, reward in enumerate(terms.rewards)
        if isinstance(reward, ModelReward) and reward.normalized_by == "policy"
    }
