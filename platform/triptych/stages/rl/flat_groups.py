"""Prompts whose answers all have one score, of which an algorithm that compares the answers learns nothing."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from triptych.recipe import Rl

MANY = 0.5
"""Share of a step's prompts above which it is said: most of what was sampled teaches nothing."""
STEPS = 10
"""Steps in a row after which it is said: a step of few prompts may be mostly flat by chance, ten in a row are not."""


def flat_share(groups: Sequence[int], scores: Tensor) -> float | None:
    """Share of groups with two scored answers or more whose answers all have one score; None: there is no such group.

    `scores` [N] are those that the algorithm compares, NaN where there is none.
    """
    found: dict[int, list[float]] = defaultdict(list)
    for group, score in zip(groups, scores.tolist(), strict=True):
        if not math.isnan(score):
            found[group].append(score)
    compared = [own for own in found.values() if len(own) > 1]
    return sum(len(set(own)) == 1 for own in compared) / len(compared) if compared else None


@dataclass
class FlatGroups:
    """Counts steps in a row most of whose groups were flat; a stage that goes on counts anew."""

    shares: list[float] = field(default_factory=list)
    """Shares of the last steps in a row that were above `MANY`."""

    def see(self, share: float | None) -> float | None:
        """Take in a step's share; the mean over `STEPS` steps, once they are so many in a row."""
        self.shares = [] if share is None or share <= MANY else [*self.shares, share]
        if len(self.shares) < STEPS:
            return None
        mean, self.shares = sum(self.shares) / STEPS, []
        return mean


def warning(stage: Rl, mean: float) -> str:
    """What is said of a mean share, and what helps."""
    dynamic = "" if stage.algorithm.more_rounds is not None else ", algorithm.dynamic_sampling"
    return (
        f"in each of the last {STEPS} steps the answers to most prompts all had one score ({mean:.0%} of prompts on "
        f"average), and {stage.algorithm.name} learns nothing from such; what helps: prompts that are neither too hard "
        f"nor too easy, a reward with more values, more rollout.samples_per_prompt, a higher "
        f"rollout.sampling.temperature{dynamic}"
    )
