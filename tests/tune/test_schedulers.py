"""Early stopping, budgets and the record, without a cluster: reports in, decisions and files out."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from triptych import storage
from triptych.errors import UserError
from triptych.observe.report.sweep import render_sweep
from triptych.observe.sweeps import read_sweep
from triptych.recipe import Asha, Recipe
from triptych.tune.budget import Budget
from triptych.tune.record import Record
from triptych.tune.report_handler import ReportHandler
from triptych.tune.schedulers import ReplayingScheduler
from triptych.tune.search import assignment_of
from triptych.tune.sweep import sweep_folder
from triptych.tune.trial import Report

Make = Callable[..., Recipe]


class Stopped:
    """An executor that trains nothing."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def stop(self, name: str) -> None:
        self.names.append(name)


class Session:
    """A sweep's parts as `run_sweep` puts them together, and trials that report what a test says."""

    def __init__(self, recipe: Recipe) -> None:
        assert recipe.sweep is not None
        self.record, self.executor = Record(recipe, sweep_folder(recipe)), Stopped()
        self.budget = Budget(recipe, self.record)
        executor: Any = self.executor
        self.reports = ReportHandler(self.record, self.budget, executor, None)
        self.scheduler = ReplayingScheduler(recipe.sweep, self.reports, 2)

    def report(self, number: int, step: int, loss: float, *, final: bool = False) -> str:
        report = Report(step, {"heldout_loss": loss}, device_seconds=1.0 * step, tokens=10 * step, final=final)
        result = {"step": step, "score": loss, "report": json.dumps(asdict(report)), "run": f"trial-{number:03d}"}
        trial: Any = SimpleNamespace(config={"assignment": {"number": number}})
        return self.scheduler.on_trial_result(None, trial, result)


def begin(session: Session, count: int) -> None:
    for number in range(1, count + 1):
        session.record.begin({"stages.sft.train.optimizer.lr": 10.0**-number, "stages.sft.method.r": 2})


ASHA = {"scheduler": "asha", "asha": {"grace": 2, "reduction": 2}, "budget": {"trials": 6}}


def test_asha_stops_the_worse_half_and_writes_it_down(make_recipe: Make) -> None:
    recipe = make_recipe(**ASHA)
    session = Session(recipe)
    begin(session, 3)
    assert session.report(1, 2, 1.0) == TrialScheduler.CONTINUE
    assert session.report(1, 4, 0.9) == TrialScheduler.CONTINUE
    assert session.report(1, 6, 0.8, final=True) == TrialScheduler.CONTINUE
    assert session.report(2, 2, 3.0) == TrialScheduler.STOP
    assert session.report(3, 2, 0.5) == TrialScheduler.CONTINUE
    assert session.executor.names == ["trial-001", "trial-002"]
    view = read_sweep(sweep_folder(recipe))
    assert [trial.status for trial in view.trials] == ["done", "stopped", "running"]
    assert [trial.step for trial in view.trials] == [6, 2, 2]
    assert view.trials[1].reason == "asha, at step 2"
    assert view.best is not None
    assert view.best.name == "trial-001", "trial 3 is better so far, and has not come as far"
    assert view.as_dict()["tokens"] == 60 + 20 + 20


@pytest.mark.parametrize(("grace", "reduction"), [(1, 3.0), (2, 2.0), (4, 4.0), (5, 2.5)])
def test_rungs_are_where_asha_compares(grace: int, reduction: float) -> None:
    scheduler = AsyncHyperBandScheduler(grace_period=grace, reduction_factor=reduction, max_t=10**9)
    milestones = {math.ceil(milestone) for milestone, _ in scheduler._brackets[0]._rungs}
    asha = Asha(grace=grace, reduction=reduction)
    assert {step for step in range(1, 2000) if asha.has_rung(step)} == {at for at in milestones if at < 2000}


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_a_later_sitting_decides_as_the_same_one_would(make_recipe: Make, scheduler: str) -> None:
    recipe = make_recipe(**ASHA | {"scheduler": scheduler, "median": {"min_trials": 2}})
    losses = {1: (1.0, 0.9), 2: (3.0, 2.0), 3: (0.5, 0.4), 4: (2.0, 1.9), 5: (0.6, 5.0), 6: (0.7, 0.3)}
    turns = [(n, s, losses[n][s // 2 - 1]) for s in (2, 4) for n in losses]

    def play(restart_after: int) -> list[tuple[str, int]]:
        storage.remove(sweep_folder(recipe))
        session = Session(recipe)
        begin(session, 6)
        for turn, (number, step, loss) in enumerate(turns):
            if turn == restart_after:
                session = Session(recipe)
            if session.record.trials[number].status == "running":
                session.report(number, step, loss)
        return [(trial.status, trial.step) for trial in read_sweep(sweep_folder(recipe)).trials]

    undisturbed = play(-1)
    assert {status for status, _ in undisturbed} == {"running", "stopped"}
    for after in range(len(turns)):
        assert play(after) == undisturbed


def test_a_stop_that_was_decided_but_not_written_is_made_up_for(make_recipe: Make) -> None:
    recipe = make_recipe(**ASHA)
    session = Session(recipe)
    begin(session, 2)
    session.report(1, 2, 1.0)
    session.report(2, 2, 3.0)
    events = Path(sweep_folder(recipe)) / "events"
    (events / max(storage.list_files(str(events)))).unlink()
    assert read_sweep(sweep_folder(recipe)).trials[1].status == "running"
    Session(recipe)
    assert read_sweep(sweep_folder(recipe)).trials[1].status == "stopped"


def test_what_is_on_record_is_not_judged_again(make_recipe: Make) -> None:
    recipe = make_recipe(**ASHA)
    session = Session(recipe)
    begin(session, 2)
    session.report(1, 2, 1.0)
    session.report(1, 4, 0.9)
    again = Session(recipe)
    assert again.report(1, 4, 0.9) == TrialScheduler.CONTINUE
    assert len(again.record.trials[1].reports) == 2
    assignment = assignment_of(again.record.trials[1])
    assert (assignment.run, assignment.reported, assignment.device_seconds) == ("trial-001", 4, 4.0)


def test_a_number_that_is_none_is_the_worst(make_recipe: Make) -> None:
    recipe = make_recipe(**ASHA)
    session = Session(recipe)
    begin(session, 2)
    session.report(1, 2, 1.0)
    assert session.report(2, 2, float("inf")) == TrialScheduler.STOP
    trial: Any = SimpleNamespace(config={"assignment": {"number": 1}})
    assert session.scheduler.on_trial_result(None, trial, {"step": 2, "failed": "rows are wrong"}) == "CONTINUE"
    view = read_sweep(sweep_folder(recipe))
    assert (view.trials[0].status, view.trials[0].reason) == ("failed", "rows are wrong")
    assert "<td>inf</td>" in render_sweep(view, {})


@pytest.mark.parametrize("limit", [{"tokens": 70}, {"device_seconds": 7}])
def test_budgets_count_over_all_trials(make_recipe: Make, limit: dict[str, float]) -> None:
    session = Session(make_recipe(budget=limit))
    begin(session, 2)
    session.report(1, 4, 1.0)
    assert not session.budget.stop_all()
    session.report(2, 4, 1.0)
    assert session.budget.stop_all()
    assert session.budget.full


def test_a_trial_under_way_spends_before_it_reports(make_recipe: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(make_recipe(budget={"device_seconds": 50}))
    begin(session, 1)
    clock = [0.0]
    monkeypatch.setattr("triptych.tune.budget.time.monotonic", lambda: clock[0])
    session.budget.started(1)
    clock[0] = 40.0
    assert not session.budget.stop_all()
    clock[0] = 51.0
    assert session.budget.stop_all()
    session.reports.end(1, "cut", "the budget was used up")
    assert session.record.device_seconds == 51.0
    assert session.budget.stop_all(), "the same when it goes on"


def test_another_sweep_in_the_same_folder_is_refused(make_recipe: Make) -> None:
    recipe = make_recipe()
    Record(recipe, sweep_folder(recipe)).begin({"stages.sft.method.r": 2})
    changed = make_recipe(space={"stages.sft.method.r": {"choice": [2, 8]}})
    with pytest.raises(UserError, match=r"begun from another recipe \(sweep.space.stages.sft.method.r.choice: "):
        Record(changed, sweep_folder(changed))
    larger = make_recipe(budget={"trials": 9})
    assert Record(larger, sweep_folder(larger)).launched == 1
