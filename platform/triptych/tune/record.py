"""What a sweep has on record: one small file for each event, written before anything follows from it.

Plain JSON that is read back when the same sweep goes on; nothing of Tune's own state is.
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
        """UserError: the folder holds the sweep of another recipe."""
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
        """A new trial, numbered on."""
        number = len(self.trials) + 1
        self._add({"event": "begun", "trial": number, "values": values})
        return self.trials[number]

    def report(self, number: int, run: str, report: Report) -> None:
        """An evaluation."""
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
        """The trial goes on from the donor's weights at `step`, as a run of its own."""
        run = f"{trial_name(number)}-at-{step}"
        event = {"event": "exploit", "trial": number, "donor": trial_name(donor), "step": step}
        event["tokens"] = self.trials[number].tokens
        self._add(event | {"values": values, "run": run})
        return self.trials[number]

    def end(self, number: int, status: str, reason: str = "", device_seconds: float = 0.0) -> None:
        """The trial is over, as TrialView.status says."""
        event = {"event": "ended", "trial": number, "status": status, "reason": reason}
        self._add(event | {"device_seconds": device_seconds})

    def _add(self, event: Event) -> None:
        name = f"{len(self.events) + 1:08d}.json"
        storage.write_bytes(storage.join(self.url, EVENTS, name), json.dumps(event).encode())
        self.events.append(event)
        apply_event(self.trials, event)


def _compare(before: Recipe, now: Recipe, url: str) -> None:
    """UserError where another recipe, or another sweep of it, was begun in the folder."""
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
