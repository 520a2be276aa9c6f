"""Early stopping: Tune's schedulers, told of what an earlier sitting of the sweep had on record first."""

from dataclasses import dataclass
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from triptych.observe.sweeps import trial_name
from triptych.recipe import Sweep
from triptych.tune.ledger import Ledger, number_of
from triptych.tune.trial import worst

_ENDLESS = 10**9
"""Steps; a trial ends by itself."""


@dataclass(frozen=True)
class Standing:
    """A trial as a scheduler knows it: by its name, in whichever sitting."""

    trial_id: str


class _Nobody:
    """What the schedulers see of Tune's controller: no trial that waits for one to be paused."""

    def get_live_trials(self) -> list[TuneTrial]:
        return []


_NOBODY: Any = _Nobody()


class Judge(FIFOScheduler):
    """Asks a scheduler of Tune whether a trial goes on."""

    def __init__(self, sweep: Sweep, ledger: Ledger, evaluate_every: int | None) -> None:
        super().__init__()
        self._ledger = ledger
        self._inner = _scheduler(sweep, evaluate_every)
        self._objective = sweep.objectives[0]
        self._added: set[str] = set()
        for event in ledger.record.events:
            if event["event"] == "report":
                name = trial_name(event["trial"])
                value = event["metrics"].get(self._objective.metric)
                score = value if value is not None and value == value else worst(self._objective.mode)
                stops = self._judge(name, {"step": event["step"], "score": score}) == TrialScheduler.STOP
                ended = self._ledger.record.trials[event["trial"]]
                if stops and ended.status == "running" and ended.step == event["step"]:
                    ledger.end(event["trial"], "stopped", _why(sweep, event["step"]))
        self._sweep = sweep

    def on_trial_result(self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]) -> str:
        """Tune's: what becomes of the trial."""
        if not self._ledger.take(trial, result):
            return TrialScheduler.CONTINUE
        number = number_of(trial)
        decision = self._judge(trial_name(number), result)
        if decision == TrialScheduler.STOP:
            self._ledger.end(number, "stopped", _why(self._sweep, result["step"]))
        return decision

    def _judge(self, name: str, result: dict[str, Any]) -> str:
        if self._inner is None:
            return TrialScheduler.CONTINUE
        standing: Any = Standing(name)
        if name not in self._added:
            self._added.add(name)
            self._inner.on_trial_add(_NOBODY, standing)
        return self._inner.on_trial_result(_NOBODY, standing, dict(result))


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
