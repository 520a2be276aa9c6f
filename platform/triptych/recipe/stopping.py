"""Rules and budgets that end a stage of reinforcement learning before its last step; each is off unless it is given."""

from collections.abc import Iterator

from pydantic import Field, model_validator

from triptych.recipe.base import Closed, Count, Positive
from triptych.recipe.errors import Fault


class KlLimit(Closed):
    """End where the policy leaves the reference for good: its KL blows up."""

    limit: Positive
    """Mean KL to the reference that a step may have, nats an answer (`kl` in the metrics log)."""
    patience: Count = 3
    """Steps in a row above the limit that end the stage."""


class RewardPlateau(Closed):
    """End where the reward of sampled answers no longer rises."""

    window: Count = 10
    """Steps over which the mean reward (`reward` in the metrics log) is averaged; nothing is judged before so many."""
    patience: Count = 20
    """Steps without a new best average that end the stage."""
    min_delta: float = Field(0.0, ge=0)
    """A smaller gain is no new best."""


class HeldoutReward(Closed):
    """End where the reward on held-out prompts no longer rises; the best evaluated weights are kept."""

    patience: Count = 3
    """Evaluations without a new best `heldout_reward` that end the stage."""
    min_delta: float = Field(0.0, ge=0)
    """A smaller gain is no new best."""


class RewardHacking(Closed):
    """End where the judge, which training never sees, falls while the reward on held-out prompts rises.

    Rewards that are optimised too far part from what they stand for (Gao et al. 2023, arXiv 2210.10760). The weights
    that are kept have the best `heldout_reward` of the evaluations at which the judge had not fallen.
    """

    margin: float = Field(ge=0)
    """Fall of `heldout_judge` below its best so far that is put up with."""
    patience: Count = 2
    """Evaluations in a row, each with a larger fall and with more reward than where the judge was best, that end it."""


class RlBudget(Closed):
    """Limits of what the stage may cost; the first that is used up ends it, after the step that it is used up in.

    What earlier starts of the stage spent up to the checkpoint that it goes on from counts too.
    """

    sampled_tokens: Count | None = None
    """Tokens of the answers that training samples (`tokens` in the metrics log); those of evaluations do not count."""
    wall_hours: Positive | None = None
    """Hours by the clock of the first worker: its loading, evaluations and checkpoints too, not the engines' start."""
    device_hours: Positive | None = None
    """These hours times the GPUs, or shares of them, that workers and engines reserve together; where they reserve
    none, times their logical CPUs."""

    @model_validator(mode="after")
    def _something(self) -> "RlBudget":
        if self.sampled_tokens is None and self.wall_hours is None and self.device_hours is None:
            raise ValueError("give at least one of sampled_tokens, wall_hours, device_hours")
        return self


class StopRules(Closed):
    """Rules that end the stage in order: with a checkpoint, the last evaluation, and its output registered."""

    kl: KlLimit | None = None
    """A KL that blows up."""
    plateau: RewardPlateau | None = None
    """A reward that no longer rises."""
    heldout: HeldoutReward | None = None
    """A reward on held-out prompts that no longer rises."""
    hacking: RewardHacking | None = None
    """A reward that rises while an independent judge falls."""
    budget: RlBudget | None = None
    """Tokens, hours and device-hours that the stage may take."""


def stopping_faults(
    rules: StopRules, *, reference: bool, heldout: bool, evaluated: bool, judged: bool
) -> Iterator[Fault]:
    """Faults of rules whose numbers are never measured; paths are below the stage.

    Args:
        rules: the stage's.
        reference: whether the KL to a reference is measured.
        heldout: whether it has held-out prompts.
        evaluated: whether it is measured on them during training.
        judged: whether an independent judge scores the answers.
    """
    if rules.kl is not None and not reference:
        yield Fault(("train", "stopping", "kl"), "no KL is measured where `kl.coef` is 0; allowed: more, or no kl here")
    for name in ("heldout", "hacking"):
        if getattr(rules, name) is None:
            continue
        field = ("train", "stopping", name)
        if not heldout:
            yield Fault(field, f"no held-out prompts to measure; allowed: with `data.heldout`, or no stopping.{name}")
        if not evaluated:
            yield Fault(field, f"needs evaluations during training; allowed: with `train.evaluate_every`, or no {name}")
    if rules.hacking is not None and not judged:
        yield Fault(("train", "stopping", "hacking"), "needs a score that training never sees; allowed: with `judge`")
