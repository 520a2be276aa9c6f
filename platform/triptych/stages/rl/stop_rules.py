"""Rules that end reinforcement learning early: each reads a step's numbers, and remembers what it needs of others.

Every rank gives them the same numbers, and a checkpoint their state: so all decide alike, and alike after a restart.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from triptych.recipe import EarlyStopping
from triptych.recipe.stopping import HeldoutReward, KlLimit, RewardHacking, RewardPlateau, RlBudget, StopRules
from triptych.train.stopping import Stopper

StepNumbers = Mapping[str, float]
"""Metrics of a step or of an evaluation; `seconds`: by the clock of rank 0 since the stage began."""


@dataclass(frozen=True)
class Reason:
    """Reason of a rule to end a stage, as a sentence and as the numbers in it."""

    why: str
    numbers: dict[str, float]


class StopRule(Protocol):
    """One rule."""

    @property
    def needs(self) -> str:
        """Metric without which a row is none of the rule's."""

    def judge(self, step: int, numbers: StepNumbers) -> Reason | None:
        """Take in the numbers at a step, counted from 1 (0: before the first); the reason to end there, if any."""

    def state(self) -> dict[str, Any]:
        """State for a checkpoint, as plain JSON."""

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from `state`."""


@dataclass
class KlRule:
    """Counts steps in a row whose KL is above its limit, or no number."""

    needs: ClassVar[str] = "kl"
    config: KlLimit
    above: int = 0

    def judge(self, step: int, numbers: StepNumbers) -> Reason | None:
        kl, limit = numbers["kl"], self.config.limit
        self.above = 0 if kl <= limit else self.above + 1
        if self.above < self.config.patience:
            return None
        why = f"the KL was above {limit:g} nats an answer for {self.above} steps in a row, and is {kl:.4g}"
        return Reason(why, {"kl": kl, "limit": limit, "steps": self.above})

    def state(self) -> dict[str, Any]:
        return {"above": self.above}

    def load_state(self, state: dict[str, Any]) -> None:
        self.above = state["above"]


@dataclass
class PlateauRule:
    """Averages the reward over the last steps, and counts those since its best average."""

    needs: ClassVar[str] = "reward"
    config: RewardPlateau
    recent: list[float] = field(default_factory=list)
    """Rewards of the last `window` steps."""
    stopper: Stopper = field(init=False)

    def __post_init__(self) -> None:
        self.stopper = _rising(self.config.patience, self.config.min_delta)

    def judge(self, step: int, numbers: StepNumbers) -> Reason | None:
        self.recent = [*self.recent, numbers["reward"]][-self.config.window :]
        if len(self.recent) < self.config.window:
            return None
        average = math.fsum(self.recent) / len(self.recent)
        self.stopper.see(step, average)
        if not self.stopper.stops:
            return None
        over = f"over {self.config.window} steps"
        why = (
            f"the reward {over} had no new best for {self.stopper.waited} steps: {_beside_best(average, self.stopper)}"
        )
        return Reason(why, {"average_reward": average} | _best_of(self.stopper))

    def state(self) -> dict[str, Any]:
        return {"recent": self.recent, "stopper": self.stopper.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.recent = list(state["recent"])
        self.stopper.load_state(state["stopper"])


@dataclass
class HeldoutRule:
    """Counts evaluations since the best held-out reward; the one before the first step is among them."""

    config: HeldoutReward
    stopper: Stopper = field(init=False)

    def __post_init__(self) -> None:
        self.stopper = _rising(self.config.patience, self.config.min_delta)

    @property
    def needs(self) -> str:
        return self.config.metric

    def judge(self, step: int, numbers: StepNumbers) -> Reason | None:
        value = numbers[self.needs]
        self.stopper.see(step, value)
        if not self.stopper.stops:
            return None
        waited = self.stopper.waited
        name = "the held-out reward" if self.needs == "heldout_reward" else self.needs
        why = f"{name} had no new best in {waited} evaluations: {_beside_best(value, self.stopper)}"
        return Reason(why, {self.needs: value} | _best_of(self.stopper))

    def state(self) -> dict[str, Any]:
        return {"stopper": self.stopper.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        self.stopper.load_state(state["stopper"])


@dataclass
class HackingRule:
    """Counts evaluations in a row whose watch has fallen from its best while the held-out reward rose since then."""

    config: RewardHacking
    watched: str = "judge"
    """Name of the score that training never sees."""
    best: float = -math.inf
    """Best of the watch."""
    reward_then: float = math.nan
    """Held-out reward at the evaluation with the best of the watch."""
    suspicious: int = 0

    @property
    def needs(self) -> str:
        return f"{self.config.split}_reward"

    @property
    def watch(self) -> str:
        """Metric of the score that training never sees."""
        return f"{self.config.split}_{self.watched}"

    def judge(self, step: int, numbers: StepNumbers) -> Reason | None:
        watch, reward = numbers[self.watch], numbers[self.needs]
        if math.isfinite(watch) and watch > self.best:
            self.best, self.reward_then = watch, reward
        hacked = self.has_fallen(numbers) and reward > self.reward_then
        self.suspicious = self.suspicious + 1 if hacked else 0
        if self.suspicious < self.config.patience:
            return None
        fall = f"the {self.watched} fell from {self.best:.4g} to {watch:.4g} while the held-out reward rose from "
        why = f"{fall}{self.reward_then:.4g} to {reward:.4g}, {self.suspicious} evaluations in a row"
        found = {self.watch: watch, f"best_{self.watched}": self.best, self.needs: reward}
        then = {f"reward_at_best_{self.watched}": self.reward_then, "evaluations": self.suspicious}
        return Reason(why, found | then)

    def has_fallen(self, numbers: StepNumbers) -> bool:
        """Whether the watch is no number, or below its best by more than the margin."""
        return not numbers[self.watch] >= self.best - self.config.margin

    def state(self) -> dict[str, Any]:
        return {"best": self.best, "reward_then": self.reward_then, "suspicious": self.suspicious}

    def load_state(self, state: dict[str, Any]) -> None:
        self.best, self.reward_then, self.suspicious = state["best"], state["reward_then"], state["suspicious"]


@dataclass
class BudgetRule:
    """Adds up what the stage has taken."""

    needs: ClassVar[str] = "reward"
    config: RlBudget
    devices: float
    """GPUs, or CPUs, that count for `device_hours`."""
    tokens: float = 0.0

    def judge(self, step: int, numbers: StepNumbers) -> Reason | None:
        self.tokens += numbers["tokens"]
        hours = numbers["seconds"] / 3600
        used = {"sampled_tokens": self.tokens, "wall_hours": hours, "device_hours": hours * self.devices}
        for name, taken in used.items():
            limit: float | None = getattr(self.config, name)
            if limit is not None and taken >= limit:
                return Reason(f"{name}: {taken:.6g} of {limit:g} are used up", used)
        return None

    def state(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def load_state(self, state: dict[str, Any]) -> None:
        self.tokens = state["tokens"]


def rules_of(config: StopRules, devices: float, watched: str) -> dict[str, StopRule]:
    """The rules that are on, by their fields, the one that explains most first: if several fire at once, it counts.

    `watched`: see `HackingRule`.
    """
    found: dict[str, StopRule] = {}
    if config.hacking is not None:
        found["hacking"] = HackingRule(config.hacking, watched)
    if config.kl is not None:
        found["kl"] = KlRule(config.kl)
    if config.heldout is not None:
        found["heldout"] = HeldoutRule(config.heldout)
    if config.plateau is not None:
        found["plateau"] = PlateauRule(config.plateau)
    if config.budget is not None:
        found["budget"] = BudgetRule(config.budget, devices)
    return found


def _rising(patience: int, min_delta: float) -> Stopper:
    return Stopper(EarlyStopping(metric="reward", mode="max", patience=patience, min_delta=min_delta))


def _beside_best(value: float, stopper: Stopper) -> str:
    if stopper.best is None:
        return "it never was a number"
    return f"{value:.4g} after {stopper.best:.4g} at step {stopper.best_step}"


def _best_of(stopper: Stopper) -> dict[str, float]:
    if stopper.best is None or stopper.best_step is None:
        return {}
    return {"best": stopper.best, "best_step": stopper.best_step}
