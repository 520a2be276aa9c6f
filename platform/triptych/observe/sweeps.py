"""Reader's view of a sweep's folder: its recipe, and each trial as the recorded events build it up.

`<runs>/<recipe>-sweep` holds `sweep.yaml`, one small file for each event, and a run's folder for each trial.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from triptych import storage
from triptych.errors import RunError, UserError
from triptych.recipe import load_recipe_text, overrides_of
from triptych.recipe.recipe import Recipe
from triptych.recipe.sweep import Sweep, SweepObjective

RECIPE = "sweep.yaml"
EVENTS = "events"

Event = dict[str, Any]


def sweep_name(recipe: Recipe) -> str:
    """Name of the sweep's folder, beside those of runs."""
    return f"{recipe.name}-sweep"


@dataclass
class TrialView:
    """One trial so far."""

    number: int
    values: dict[str, Any]
    """Point of the space that it is trained with; PBT changes it."""
    run: str
    """Name of its present run; PBT begins a new one when the trial continues from another's weights."""
    status: str = "running"
    """`running`, `done`, `stopped` (by the scheduler), `cut` (the budget was used up), `failed`, `infeasible`."""
    reason: str = ""
    reports: list[Event] = field(default_factory=list)
    """Evaluations in order: step, run, metrics."""
    exploits: list[Event] = field(default_factory=list)
    """Steps of PBT at which it continued from another trial's weights: step, donor, values, run."""
    device_seconds: float = 0.0
    tokens: int = 0

    @property
    def name(self) -> str:
        return trial_name(self.number)

    @property
    def launched(self) -> bool:
        return self.status != "infeasible"

    @property
    def step(self) -> int:
        """Step of the last evaluation; 0 before the first."""
        return int(self.reports[-1]["step"]) if self.reports else 0

    @property
    def metrics(self) -> dict[str, float]:
        """Metrics of the last evaluation; empty before the first."""
        return dict(self.reports[-1]["metrics"]) if self.reports else {}


def trial_name(number: int) -> str:
    """Name of a trial in folders, tables and messages."""
    return f"trial-{number:03d}"


def apply_event(trials: dict[int, TrialView], event: Event) -> None:
    """Update the trials, by number, with one event."""
    number = event["trial"]
    if event["event"] == "begun":
        trials[number] = TrialView(number, event["values"], trial_name(number))
        return
    trial = trials[number]
    if event["event"] == "report":
        trial.reports.append({key: event[key] for key in ("step", "run", "metrics")})
        trial.device_seconds, trial.tokens = event["device_seconds"], event["tokens"]
    elif event["event"] == "exploit":
        trial.exploits.append(event)
        trial.values, trial.run = event["values"], event["run"]
    else:
        trial.status, trial.reason = event["status"], event["reason"]
        trial.device_seconds = max(trial.device_seconds, event["device_seconds"])


@dataclass(frozen=True)
class SweepView:
    """One sweep."""

    name: str
    url: str
    recipe_text: str
    events: list[Event]

    @cached_property
    def recipe(self) -> Recipe:
        return load_recipe_text(self.recipe_text, f"{self.url}/{RECIPE}")

    @property
    def sweep(self) -> Sweep:
        assert self.recipe.sweep is not None
        return self.recipe.sweep

    @cached_property
    def trials(self) -> list[TrialView]:
        """Trials by number."""
        found: dict[int, TrialView] = {}
        for event in self.events:
            apply_event(found, event)
        return [found[number] for number in sorted(found)]

    @cached_property
    def best(self) -> TrialView | None:
        """The best of `comparable` by the first objective; None before the first result."""
        ended = self.comparable
        objective = self.sweep.objectives[0]
        return min(ended, key=lambda trial: signed(objective, trial), default=None)

    @property
    def comparable(self) -> list[TrialView]:
        """Trials with a finite value of every objective; if some were trained to their end, only those."""
        wanted = [objective.metric for objective in self.sweep.objectives]
        measured = [t for t in self.trials if all(math.isfinite(t.metrics.get(name, math.nan)) for name in wanted)]
        return [trial for trial in measured if trial.status == "done"] or measured

    @property
    def front(self) -> list[TrialView]:
        """Pareto front: trials to which no other is at least equal in all objectives and better in one."""
        scores = {t.number: [signed(o, t) for o in self.sweep.objectives] for t in self.comparable}
        return [t for t in self.comparable if not any(_beats(other, scores[t.number]) for other in scores.values())]

    def as_dict(self) -> dict[str, Any]:
        """The final table as plain data."""
        best = self.best
        several = len(self.sweep.objectives) > 1
        return {
            "name": self.name,
            "url": self.url,
            "space": list(self.sweep.space),
            "objectives": [objective.model_dump() for objective in self.sweep.objectives],
            "trials": [_row(trial) for trial in self.trials],
            "infeasible": sum(not trial.launched for trial in self.trials),
            "device_seconds": sum(trial.device_seconds for trial in self.trials),
            "tokens": sum(trial.tokens for trial in self.trials),
            "best": None if best is None or several else best.name,
            "front": [trial.name for trial in self.front] if several else [],
            "settings": {trial.name: overrides_of(self.recipe, trial.values) for trial in self.chosen},
        }

    @property
    def chosen(self) -> list[TrialView]:
        """The Pareto front of several objectives, or the best trial of one, if there is any."""
        if len(self.sweep.objectives) > 1:
            return self.front
        return [self.best] if self.best else []


def signed(objective: SweepObjective, trial: TrialView) -> float:
    """A trial's value of an objective, negated if it is maximised, so that less is better; infinity for NaN."""
    value = trial.metrics[objective.metric]
    if math.isnan(value):
        return math.inf
    return value if objective.mode == "min" else -value


def read_sweep(url: str) -> SweepView:
    """The sweep in a folder; UserError where there is none."""
    recipe = storage.join(url, RECIPE)
    if not storage.exists(recipe):
        raise UserError(f"{url} is not a sweep: it has no {RECIPE}")
    return SweepView(url.rstrip("/").rsplit("/", 1)[-1], url, storage.read_bytes(recipe).decode(), read_events(url))


def find_sweep(runs: str, name: str) -> SweepView | None:
    """The sweep of that name in a folder of runs, if there is one."""
    url = storage.join(runs, name)
    return read_sweep(url) if storage.exists(storage.join(url, RECIPE)) else None


def read_events(url: str) -> list[Event]:
    """All events of a sweep's folder, in order."""
    folder = storage.join(url, EVENTS)
    return list(_parsed(storage.join(folder, name) for name in storage.list_files(folder)))


def _parsed(urls: Iterable[str]) -> Iterable[Event]:
    for url in urls:
        try:
            event = json.loads(storage.read_bytes(url))
        except ValueError as error:
            raise RunError(f"{url} is damaged: {error}") from error
        yield event


def _beats(one: list[float], other: list[float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def _row(trial: TrialView) -> dict[str, Any]:
    return {
        "trial": trial.name,
        "status": trial.status,
        "reason": trial.reason,
        "step": trial.step,
        "values": trial.values,
        "metrics": trial.metrics,
        "tokens": trial.tokens,
        "device_seconds": trial.device_seconds,
        "exploits": [{key: e[key] for key in ("step", "donor", "values")} for e in trial.exploits],
    }
