"""Early stopping by Tune's schedulers, which first replay the events of earlier sessions of the sweep."""

from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from triptych.observe.sweeps import trial_name
from triptych.recipe import Sweep
from triptych.tune.report_handler import ReportHandler, number_of
from triptych.tune.trial import worst

_ENDLESS = 10**9
"""Steps after which ASHA would end a trial; trials end by themselves earlier."""


@dataclass(frozen=True)
class TrialStub:
    """Stand-in for Tune's trial: schedulers tell trials apart by `trial_id`, here the same in every session."""

    trial_id: str


class _ControllerStub:
    """Stand-in for Tune's controller, which schedulers ask for live trials that they could resume."""

    def get_live_trials(self) -> list[TuneTrial]:
        return []


_CONTROLLER: Any = _ControllerStub()


class ReplayingScheduler(FIFOScheduler):
    """Asks one of Tune's schedulers whether a trial continues, after replaying the sweep's record to it.

    Tune's own state is not kept, so a sweep that continues would compare new trials with nothing. The replay gives the
    scheduler every report on record, in order. It also repeats decisions that were made but not written down: where
    the last report of a trial still `running` meets STOP, the earlier session ended between the report and its
    consequence, and the trial is ended now. Therefore this is built before `Search`, which would resume such a trial.
    """

    def __init__(self, sweep: Sweep, reports: ReportHandler, evaluate_every: int | None) -> None:
        super().__init__()
        self._reports = reports
        self._inner = _scheduler(sweep, evaluate_every)
        self._objective = sweep.objectives[0]
        self._added: set[str] = set()
        for event in reports.record.events:
            if event["event"] == "report":
                name = trial_name(event["trial"])
                value = event["metrics"].get(self._objective.metric)
                score = value if value is not None and value == value else worst(self._objective.mode)
                stops = self._decide(name, {"step": event["step"], "score": score}) == TrialScheduler.STOP
                ended = self._reports.record.trials[event["trial"]]
                if stops and ended.status == "running" and ended.step == event["step"]:
                    reports.end(event["trial"], "stopped", _why(sweep, event["step"]))
        self._sweep = sweep

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Tune's hook: record the report, and decide whether the trial continues."""
        if not self._reports.handle(trial, result):
            return TrialScheduler.CONTINUE
        number = number_of(trial)
        decision = self._decide(trial_name(number), result)
        if decision == TrialScheduler.STOP:
            self._reports.end(number, "stopped", _why(self._sweep, result["step"]))
        return decision

    def _decide(self, name: str, result: dict[str, Any]) -> str:
        if self._inner is None:
            return TrialScheduler.CONTINUE
        stub: Any = TrialStub(name)
        if name not in self._added:
            self._added.add(name)
            self._inner.on_trial_add(_CONTROLLER, stub)
        return self._inner.on_trial_result(_CONTROLLER, stub, dict(result))


def _scheduler(sweep: Sweep, evaluate_every: int | None) -> TrialScheduler | None:
    about: dict[str, Any] = {"time_attr": "step", "metric": "score", "mode": sweep.objectives[0].mode}
    if sweep.scheduler == "asha":
        grace = sweep.asha.grace or evaluate_every or 1
        return AsyncHyperBandScheduler(
            **about, grace_period=grace, reduction_factor=sweep.asha.reduction, max_t=_ENDLESS
        )
    if sweep.scheduler == "median":
        return MedianStoppingRule(
            **about,
            grace_period=sweep.median.grace or evaluate_every or 1,
            min_samples_required=sweep.median.min_trials,
        )
    return None


def _why(sweep: Sweep, step: int) -> str:
    return f"{sweep.scheduler}, at step {step}"
