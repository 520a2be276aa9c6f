"""What follows from every report: the record first, then the schedulers' decision."""

import json
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from triptych.tune.budget import Budget
from triptych.tune.executor import Executor
from triptych.tune.record import Record
from triptych.tune.slots import Slots
from triptych.tune.trial import Report


def number_of(trial: TuneTrial) -> int:
    """Which trial of the sweep a trial of Tune is."""
    number: int = trial.config["assignment"]["number"]
    return number


class Ledger:
    """Writes down what trials tell, and lets go of those that are over."""

    def __init__(self, record: Record, budget: Budget, executor: Executor, slots: Slots | None) -> None:
        self.record, self.budget = record, budget
        self._executor, self._slots = executor, slots

    def take(self, trial: TuneTrial, result: Mapping[str, Any]) -> bool:
        """Whether the report is one that a scheduler has to judge: new, and not a trial's last."""
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
        """A trial's driver goes; the trial will go on."""
        self._let_go(number)

    def end(self, number: int, status: str, reason: str = "") -> None:
        """A trial is over. It may be so twice: the first word counts."""
        trial = self.record.trials[number]
        if trial.status == "running":
            self.record.end(number, status, reason, trial.device_seconds + self.budget.under_way(number))
        self._let_go(number)

    def _let_go(self, number: int) -> None:
        self.budget.rested(number)
        self._executor.stop(self.record.trials[number].run)
        if self._slots:
            self._slots.release(number)


class Deaths(Callback):
    """Trials whose driver died without a word."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:
        """Tune has given the trial up."""
        error = trial.get_error()
        reason = str(error).strip().rpartition("\n")[2] if error else "no reason given"
        self._ledger.end(number_of(trial), "failed", f"its driver died: {reason}")
