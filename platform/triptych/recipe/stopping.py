"""Rules and budgets that end a stage of reinforcement learning before its last step; each is off unless it is given."""

from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field, model_validator

from triptych.recipe.base import Closed, Count, Positive
from triptych.recipe.errors import Fault
from triptych.recipe.heldout import UNNAMED


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

    metric: str = "heldout_reward"
    """The reward, or pass@k, of a held-out set: `heldout_<set>_reward`, `heldout_<set>_pass_at_<k>`."""
    patience: Count = 3
    """Evaluations without a new best that end the stage."""
    min_delta: float = Field(0.0, ge=0)
    """A smaller gain is no new best."""


class RewardHacking(Closed):
    """End where the watch or judge, which training never sees, falls while the reward on held-out prompts rises.

    Rewards that are optimised too far part from what they stand for (Gao et al. 2023, arXiv 2210.10760). The weights
    that are kept are the best of the evaluations at which the watch had not fallen.
    """

    set: str | None = None
    """Set of `evaluations` whose reward and watch are compared; None: the one without a name."""
    margin: float = Field(ge=0)
    """Fall of `heldout_watch`, or `heldout_judge`, below its best so far that is put up with."""
    patience: Count = 2
    """Evaluations in a row, each with a larger fall and with more reward than where the watch was best, that end it."""

    @property
    def split(self) -> str:
        """The set's split, which its metrics begin with."""
        return UNNAMED if self.set is None else f"{UNNAMED}_{self.set}"


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
    """A reward that rises while a score that training never sees falls."""
    budget: RlBudget | None = None
    """Tokens, hours and device-hours that the stage may take."""

    @property
    def best_by(self) -> str | None:
        """Held-out metric by which the weights that are kept are the best; None: the last are kept."""
        if self.heldout is not None:
            return self.heldout.metric
        return None if self.hacking is None else f"{self.hacking.split}_reward"


def stopping_faults(
    rules: StopRules,
    *,
    reference: bool,
    measured: Sequence[str],
    evaluated: bool,
    watched: Literal["judge", "watch"] | None,
) -> Iterator[Fault]:
    """Faults of rules whose numbers are never measured; paths are below the stage.

    Args:
        rules: the stage's.
        reference: whether the KL to a reference is measured.
        measured: metrics of the stage's held-out prompts.
        evaluated: whether it is measured on them during training.
        watched: the score that training never sees.
    """
    if rules.kl is not None and not reference:
        yield Fault(("train", "stopping", "kl"), "no KL is measured where `kl.coef` is 0; allowed: more, or no kl here")
    for name in ("heldout", "hacking"):
        if getattr(rules, name) is None:
            continue
        field = ("train", "stopping", name)
        if not measured:
            yield Fault(field, f"no held-out prompts to measure; allowed: with `data.heldout`, or no stopping.{name}")
        if not evaluated:
            yield Fault(field, f"needs evaluations during training; allowed: with `train.evaluate_every`, or no {name}")
    if rules.hacking is not None and watched is None:
        yield Fault(
            ("train", "stopping", "hacking"), "needs a score that training never sees; allowed: with `watch` or `judge`"
        )
    if measured:
        yield from _unmeasured(rules, measured)


def _unmeasured(rules: StopRules, measured: Sequence[str]) -> Iterator[Fault]:
    """Metrics, or sets, that are not there, or of which more is not better."""
    risen = [name for name in measured if name.endswith("_reward") or "_pass_at_" in name]
    if rules.heldout is not None and rules.heldout.metric not in risen:
        yield Fault(
            ("train", "stopping", "heldout", "metric"), f"`{rules.heldout.metric}`; allowed: {', '.join(risen)}"
        )
    if rules.hacking is not None and f"{rules.hacking.split}_reward" not in risen:
        sets = [name.removesuffix("_reward").removeprefix(f"{UNNAMED}_") for name in risen if name.endswith("_reward")]
        known = ", ".join("none" if name == UNNAMED else name for name in sets)
        yield Fault(("train", "stopping", "hacking", "set"), f"`{rules.hacking.set}` is no such set; allowed: {known}")
