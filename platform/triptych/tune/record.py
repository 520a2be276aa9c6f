"""Event-sourced record of a sweep: one small JSON file an event, written before anything follows from the event.

A sweep that continues is rebuilt from these files; Tune's own state is not kept.
"""

import json
from typing import Any

from triptych import storage
from triptych.errors import UserError
from triptych.observe.sweeps import EVENTS, RECIPE, Event, TrialView, apply_event, read_events, trial_name
from triptych.recipe import Recipe, dump_recipe, load_recipe_text
from triptych.recipe.changes import differences
from triptych.tune.trial import Report

_MAY_CHANGE = ("budget", "concurrency", "shared_base", "winner")
"""Fields of a sweep that may differ when it goes on."""


class Record:
    """The trials of a sweep, and their events as files."""

    def __init__(self, recipe: Recipe, url: str) -> None:
        """Open or begin the record at `url`. UserError if it holds the sweep of another recipe."""
        self.url = url
        where = storage.join(url, RECIPE)
        if storage.exists(where):
            _compare(load_recipe_text(storage.read_bytes(where).decode(), where), recipe, url)
        storage.write_bytes(where, dump_recipe(recipe).encode())
        self.events = read_events(url)
        self.trials: dict[int, TrialView] = {}
        for event in self.events:
            apply_event(self.trials, event)

    @property
    def device_seconds(self) -> float:
        return sum(trial.device_seconds for trial in self.trials.values())

    @property
    def tokens(self) -> int:
        return sum(trial.tokens for trial in self.trials.values())

    @property
    def launched(self) -> int:
        return sum(trial.launched for trial in self.trials.values())

    def begin(self, values: dict[str, Any]) -> TrialView:
        """Record a new trial, with the next number."""
        number = len(self.trials) + 1
        self._add({"event": "begun", "trial": number, "values": values})
        return self.trials[number]

    def report(self, number: int, run: str, report: Report) -> None:
        """Record an evaluation of a trial."""
        self._add(
            {
                "event": "report",
                "trial": number,
                "run": run,
                "step": report.step,
                "metrics": dict(report.metrics),
                "device_seconds": report.device_seconds,
                "tokens": report.tokens,
            }
        )

    def exploit(self, number: int, donor: int, step: int, values: dict[str, Any]) -> TrialView:
        """Record that a trial continues from the donor's weights at `step`, in a new run."""
        run = f"{trial_name(number)}-at-{step}"
        event = {"event": "exploit", "trial": number, "donor": trial_name(donor), "step": step}
        event["tokens"] = self.trials[number].tokens
        self._add(event | {"values": values, "run": run})
        return self.trials[number]

    def end(self, number: int, status: str, reason: str = "", device_seconds: float = 0.0) -> None:
        """Record the end of a trial, with a status of TrialView."""
        event = {"event": "ended", "trial": number, "status": status, "reason": reason}
        self._add(event | {"device_seconds": device_seconds})

    def _add(self, event: Event) -> None:
        name = f"{len(self.events) + 1:08d}.json"
        storage.write_bytes(storage.join(self.url, EVENTS, name), json.dumps(event).encode())
        self.events.append(event)
        apply_event(self.trials, event)


def _compare(before: Recipe, now: Recipe, url: str) -> None:
    """UserError if the folder was begun by another recipe, or by the same one with another sweep."""
    listed = differences(_comparable(before), _comparable(now))
    if listed:
        raise UserError(
            f"{url} was begun from another recipe ({listed}); give the recipe another `name`, or remove that folder "
            f"to sweep again; allowed to change: sweep.{', sweep.'.join(_MAY_CHANGE)}"
        )


def _comparable(recipe: Recipe) -> dict[str, Any]:
    data = recipe.model_dump(mode="json")
    for key in _MAY_CHANGE:
        del data["sweep"][key]
    return data
