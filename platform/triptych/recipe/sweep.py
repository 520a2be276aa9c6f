"""A sweep: trials of one stage over a space of its recipe's keys."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from triptych.recipe.base import Closed, Count, Fraction, Name, Positive

_Numbers = tuple[float, float]
_Wholes = tuple[int, int]
Values = Mapping[str, Any]
"""Dotted key of the recipe -> its value: a point of the space."""


class Dimension(Closed):
    """Values that one key may have: exactly one of the fields is set."""

    choice: tuple[Any, ...] | None = None
    """Any of these values."""
    uniform: _Numbers | None = None
    """Numbers from the first to the second."""
    loguniform: _Numbers | None = None
    """The same, each decade as likely as any other."""
    int: _Wholes | None = None
    """Whole numbers from the first to the second, both included."""
    logint: _Wholes | None = None
    """Lowest and highest whole number, drawn evenly on a logarithmic scale."""
    when: dict[str, Any] = {}
    """Other keys of the space -> value, or list of values, that they must have; else the key stays as it is."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Dimension":
        given = [kind for kind in ("choice", *_RANGES) if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of choice, {', '.join(_RANGES)}")
        if self.choice is not None and not self.choice:
            raise ValueError("choice: an empty list; allowed: at least one value")
        for kind in given:
            if kind in _RANGES:
                low, high = getattr(self, kind)
                if low >= high or (kind.startswith("log") and low <= 0):
                    above = "0 < low < high" if kind.startswith("log") else "low < high"
                    raise ValueError(f"{kind}: [{low:g}, {high:g}]; allowed: [low, high] with {above}")
        return self

    def edges(self) -> tuple[Any, ...]:
        """Values between which all others lie."""
        if self.choice is not None:
            return self.choice
        bounds: tuple[Any, ...] = self.uniform or self.loguniform or self.int or self.logint or ()
        return bounds

    def holds(self, values: Values) -> bool:
        """True if a point with these values has the key, by its condition on keys before it."""
        return all(key in values and values[key] in wanted(value) for key, value in self.when.items())


_RANGES = ("uniform", "loguniform", "int", "logint")


def wanted(value: Any) -> tuple[Any, ...]:
    """The values that one entry of a `when` asks for."""
    return tuple(value) if isinstance(value, list | tuple) else (value,)


class SweepObjective(Closed):
    """A number that the stage reports, and which way it gets better."""

    metric: str
    """A metric as it is logged: a held-out one (`heldout_loss`), or of steps (`peak_memory_bytes`, `step_seconds`)."""
    mode: Literal["min", "max"]
    """Direction of the objective: smaller (min) or larger (max) values are better."""


class SweepBudget(Closed):
    """Limits of what trials cost together; the first that is used up ends the sweep."""

    trials: Count | None = None
    """Trials that are begun, at most."""
    device_seconds: Positive | None = None
    """Seconds that workers and engines hold their GPUs, starts included; where none has a GPU, each counts as one."""
    tokens: Count | None = None
    """Tokens trained on; where a stage samples them, of its answers."""

    @model_validator(mode="after")
    def _something(self) -> "SweepBudget":
        if self.trials is None and self.device_seconds is None and self.tokens is None:
            raise ValueError("give at least one of trials, device_seconds, tokens")
        return self


class Asha(Closed):
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934)."""

    grace: Count | None = None
    """Steps before a trial can be stopped; None: one evaluation of the recipe's, or one step."""
    reduction: Annotated[float, Field(gt=1)] = 3.0
    """Factor between the steps of two rungs; at each rung the best 1 / reduction of the trials continue."""

    def has_rung(self, step: int) -> bool:
        """True if this step is a rung, where trials are compared."""
        rung = float(self.grace or 1)
        while math.ceil(rung) < step:
            rung *= self.reduction
        return math.ceil(rung) == step


class Median(Closed):
    """A trial whose best is worse than the median of the others' means up to that step is stopped (Golovin 2017)."""

    grace: Count | None = None
    """Steps before a trial can be stopped; None: one evaluation."""
    min_trials: Count = 3
    """Other trials that must have come as far."""


class Pbt(Closed):
    """Population-based training (Jaderberg et al. 2017, arXiv 1711.09846), one generation after another."""

    every: Count | None = None
    """Steps of a generation; None: one evaluation."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the population that goes on from the weights of as many at the top."""
    resample: Fraction = 0.25
    """Probability that a value is drawn anew; else it is a neighbour of the donor's."""
    factors: tuple[Positive, Positive] = (0.8, 1.2)
    """A neighbouring number is the donor's times one of them."""


class Winner(Closed):
    """Training and registration of the best point."""

    train: bool = False
    """Run the recipe's stage with them when the sweep ends."""
    register_as: Name | None = None
    """Name of what comes out in the registry; None: the stage's."""


class Sweep(Closed):
    """Trials of one stage: Ray Tune asks for points of the space, each is trained as `triptych run` would."""

    stage: Name
    """The stage that is tried."""
    space: dict[str, Dimension] = Field(min_length=1)
    """Dotted key of the recipe -> what it may be. A `method.name` other than the recipe's starts from its defaults."""
    objective: SweepObjective | tuple[SweepObjective, ...]
    """One, or several: then the trials that no other beats in all of them are the answer."""
    budget: SweepBudget
    """Limits that end the sweep; the first one that is reached counts."""
    search: Literal["random", "grid", "tpe", "nsga2"] = "tpe"
    """Search for points: random, all of a grid, or Optuna's TPE or NSGA-II from the trials before."""
    scheduler: Literal["none", "asha", "median", "pbt"] = "none"
    """Early stopping of weak trials; `pbt` gives them the weights of strong ones."""
    asha: Asha = Asha()
    """Settings of the scheduler `asha`."""
    median: Median = Median()
    """Settings of the scheduler `median`."""
    pbt: Pbt = Pbt()
    """Settings of the scheduler `pbt`."""
    concurrency: Count | None = None
    """Trials side by side; None: as many as the cluster has room for."""
    shared_base: bool | Literal["auto"] = False
    """Trials train side by side in one process on one copy of the base; auto: where the space allows it."""
    winner: Winner = Winner()
    """Use of the best trial."""

    @model_validator(mode="after")
    def _agree(self) -> "Sweep":
        if not self.objectives:
            raise ValueError("objective: an empty list; allowed: at least one")
        if self.search == "grid":
            ranges = [key for key, dimension in self.space.items() if dimension.choice is None]
            if ranges:
                raise ValueError(f"search grid needs a choice for every key, and {ranges[0]} is a range")
        if self.scheduler != "none" and len(self.objectives) > 1:
            raise ValueError(f"scheduler {self.scheduler} judges by one objective; allowed with several: none")
        if self.scheduler == "pbt" and self.budget.trials is None:
            raise ValueError("scheduler pbt needs budget.trials, the size of its population")
        if self.winner.train and len(self.objectives) > 1:
            raise ValueError("winner.train: several objectives have no one winner; allowed: one objective")
        return self

    @property
    def objectives(self) -> tuple[SweepObjective, ...]:
        """The objectives as a list."""
        return self.objective if isinstance(self.objective, tuple) else (self.objective,)
