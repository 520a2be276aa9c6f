"""Named sets of held-out prompts of reinforcement learning, and how each is measured."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import Field

from triptych.recipe.base import Closed, Count, unreserved
from triptych.recipe.data import Source
from triptych.recipe.errors import Fault
from triptych.recipe.reward import RewardTerm
from triptych.recipe.rollout import Rollout, Sampling
from triptych.recipe.spec import Path

UNNAMED = "heldout"
"""Split of the held-out prompts without a name, `data.heldout`; those of a set are `heldout_<set>`."""
RESERVED = ("distinct2", "heldout", "judge", "kl", "length", "pass", "reward", "teacher", "truncated", "watch")
"""Names that would give a set's metric the name of another."""


SetName = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$"), unreserved(RESERVED, "begins the names of other metrics")
]
"""Name of a set, in its metrics behind `heldout_`: lower case letters, digits, dashes."""


class HeldoutSet(Closed):
    """Prompts that are never learned from, and how their answers are sampled and scored."""

    data: Source
    """The prompts."""
    sampling: Sampling = Sampling()
    """Settings for the sampling of their answers; those left out are `rollout.sampling`'s."""
    samples_per_prompt: Count | None = None
    """Answers to each prompt; None: as many as in rollouts."""
    rewards: tuple[RewardTerm, ...] | None = Field(None, min_length=1)
    """Scores of these answers, none of which is learned from; None: the stage's own `rewards`."""
    pass_at: tuple[Count, ...] = ()
    """Numbers of answers k for pass@k: the chance that one of k answers to a prompt is right, without bias (Chen et al.
    2021, arXiv 2107.03374, equation 1)."""
    pass_from: float | None = None
    """Weighted sum of the rewards from which an answer is right; None: that of the one reward, which must be `gsm8k` or
    `format`, for a score of 1."""

    def as_sampled(self, rollout: Rollout) -> "HeldoutSet":
        """The set with what it leaves out of its sampling as in rollouts."""
        copies = self.samples_per_prompt or rollout.samples_per_prompt
        update = {"sampling": rollout.sampling.changed(self.sampling), "samples_per_prompt": copies}
        return self.model_copy(update=update)

    def bar(self, rewards: tuple[RewardTerm, ...]) -> float | None:
        """Sum of the stage's `rewards`, or of its own, from which an answer is right; None: nothing says so."""
        if self.pass_from is not None:
            return self.pass_from
        counted = [one for one in self.rewards or rewards if one.weight != 0]
        return counted[0].weight if len(counted) == 1 and counted[0].verifies and counted[0].weight > 0 else None


def set_faults(field: Path, one: HeldoutSet, rewards: tuple[RewardTerm, ...], samples: int) -> Iterator[Fault]:
    """Faults of a set whose pass@k cannot be measured; `rewards` and `samples` a prompt are those that hold for it."""
    for place, k in enumerate(one.pass_at):
        yield from pass_at_faults((*field, "pass_at", place), k, samples)
    if one.pass_at and one.bar(rewards) is None:
        yield Fault(
            (*field, "pass_from"),
            "nothing says which answers are right; allowed: a number, or one reward of weight above 0, gsm8k or format",
        )
    if one.pass_from is not None and not one.pass_at:
        yield Fault((*field, "pass_from"), "is read for `pass_at` alone; allowed: both or neither")


def pass_at_faults(field: Path, k: int, samples: int) -> Iterator[Fault]:
    """Fault of a pass@k of more answers than a prompt has."""
    if k > samples:
        yield Fault(field, f"{k}, and a prompt has samples_per_prompt = {samples}; allowed: up to {samples}")
