"""Handling of trials' reports and ends: written to the record first, then passed to the scheduler."""

import json
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from triptych.tune.budget import Budget
from triptych.tune.executor import Executor
from triptych.tune.record import Record
from triptych.tune.semaphore import TrialSemaphore
from triptych.tune.trial import Report


def number_of(trial: TuneTrial) -> int:
    """Number, in the sweep, of one of Tune's trials."""
    number: int = trial.config["assignment"]["number"]
    return number


class ReportHandler:
    """Writes reports to the sweep's record, and frees what trials that pause or end had."""

    def __init__(self, record: Record, budget: Budget, executor: Executor, semaphore: TrialSemaphore | None) -> None:
        self.record, self.budget = record, budget
        self._executor, self._semaphore = executor, semaphore

    def handle(self, trial: TuneTrial, result: Mapping[str, Any]) -> bool:
        """Record a report; True if a scheduler has to decide on it: it is new, and not the trial's last."""
        number = number_of(trial)
        if "failed" in result:
            self.end(number, "failed", result["failed"])
            return False
        report, last = Report(**json.loads(result["report"])), self.record.trials[number]
        self.budget.started(number)
        known = bool(last.reports) and last.reports[-1]["run"] == result["run"] and last.step >= report.step
        if not known or report.final:
            self.record.report(number, result["run"], report)
        if report.final:
            self.end(number, "done")
        return not known and not report.final

    def pause(self, number: int) -> None:
        """Free what a trial's driver holds; the trial continues later."""
        self._let_go(number)

    def end(self, number: int, status: str, reason: str = "") -> None:
        """End a trial, with a status of TrialView. A second call changes nothing on record."""
        trial = self.record.trials[number]
        if trial.status == "running":
            self.record.end(number, status, reason, trial.device_seconds + self.budget.under_way(number))
        self._let_go(number)

    def _let_go(self, number: int) -> None:
        self.budget.rested(number)
        self._executor.stop(self.record.trials[number].run)
        if self._semaphore:
            self._semaphore.release(number)


class TrialErrors(Callback):
    """Callback of Tune that records trials whose driver died as failed."""

    def __init__(self, reports: ReportHandler) -> None:
        self._reports = reports

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Tune's hook: the trial failed and is not tried again."""
        error = trial.get_error()
        reason = str(error).strip().rpartition("\n")[2] if error else "no reason given"
        self._reports.end(number_of(trial), "failed", f"its driver died: {reason}")
