"""Tune's searcher: first the unfinished trials of an earlier session, then new points that are feasible."""

from dataclasses import asdict
from typing import Any

from ray.tune.search import Searcher

from triptych.observe.sweeps import TrialView
from triptych.plan import Machine
from triptych.recipe import Recipe
from triptych.tune.budget import Budget
from triptych.tune.feasible import reason_infeasible
from triptych.tune.points import Points
from triptych.tune.record import Record
from triptych.tune.trial import Assignment

MAX_INFEASIBLE = 200
"""Infeasible points in a row that end the search."""


class Search(Searcher):
    """Gives out trials, and tells Optuna how they ended."""

    def __init__(self, recipe: Recipe, record: Record, budget: Budget, machine: Machine) -> None:
        assert recipe.sweep is not None
        super().__init__()
        self._recipe, self._record, self._budget, self._machine = recipe, record, budget, machine
        self._points = Points(recipe.sweep, recipe.seed)
        self._numbers: dict[str, int] = {}
        self._waiting: list[TrialView] = []
        for number in sorted(record.trials):
            trial = record.trials[number]
            if trial.status in ("running", "failed"):
                trial.status = "running"
                self._points.begun(number, trial.values)
                self._waiting.append(trial)
            else:
                self._points.tell(trial)

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Tune's hook; the sweep's recipe has said all this already."""
        return True

    def suggest(self, trial_id: str) -> Any:
        """Tune's hook: the config of the next trial."""
        trial = self.next()
        if trial is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = trial.number
        self._budget.started(trial.number)
        return {"assignment": asdict(assignment_of(trial))}

    def next(self) -> TrialView | None:
        """The next trial to run; None if there is none, or the budget is used up."""
        if self._waiting:
            return None if self._budget.spent else self._waiting.pop(0)
        for _ in range(MAX_INFEASIBLE):
            values = None if self._budget.full else self._points.ask(len(self._record.trials) + 1)
            if values is None:
                return None
            trial = self._record.begin(values)
            reason = reason_infeasible(self._recipe, values, self._machine)
            if reason is None:
                return trial
            self._record.end(trial.number, "infeasible", reason)
            self._points.tell(trial)
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune's hook: a trial has ended, with or without an error."""
        number = self._numbers.pop(trial_id, None)
        if number is not None:
            self._points.tell(self._record.trials[number])

    def save(self, checkpoint_path: str) -> None:
        """Tune's hook; Tune's own state is not kept."""

    def restore(self, checkpoint_path: str) -> None:
        """Tune's hook; a sweep continues from its record."""


def assignment_of(trial: TrialView) -> Assignment:
    """The assignment that continues a trial from its last report on record."""
    run = [report for report in trial.reports if report["run"] == trial.run]
    exploit = trial.exploits[-1] if trial.exploits else None
    return Assignment(
        number=trial.number,
        values=trial.values,
        run=trial.run,
        forked_at=exploit["step"] if exploit else None,
        reported=run[-1]["step"] if run else 0,
        device_seconds=trial.device_seconds,
        tokens=exploit["tokens"] if exploit else 0,
    )
