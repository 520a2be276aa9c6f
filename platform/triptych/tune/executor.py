"""Executors train trials; `OnRayTrain` launches a trial's stage on Ray Train, as `triptych run` does."""

import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayActorError

from triptych import storage
from triptych.observe.log import read_metrics
from triptych.observe.progress import Progress
from triptych.plan import Machine, cluster
from triptych.recipe import Asha, Recipe, dump_recipe, with_values
from triptych.stages.artifact import summary
from triptych.stages.context import StageContext
from triptych.stages.run import chosen, run_stage, stage_context
from triptych.train import checkpoint
from triptych.train.on_ray import WorkerFailedError
from triptych.tune.budget import devices_of
from triptych.tune.feasible import max_concurrent
from triptych.tune.rendezvous import Rendezvous
from triptych.tune.trial import Report, Trial, plain_metrics

_POLL_S = 0.2


class Executor(Protocol):
    """Trains trials for a sweep. Picklable: it travels into each trial's driver, an actor of 0 CPUs."""

    def concurrency(self, recipes: list[Recipe], stage: str, machine: Machine) -> int:
        """Number of trials that run at once, if each is like one of these recipes."""

    def run(self, trial: Trial) -> Iterator[Report]:
        """Train a trial, from its last checkpoint if it has one, and yield a report of each evaluation.

        Runs in the trial's driver. Training waits between a report and the request for the next one; the driver of a
        trial that is stopped is killed there.

        Raises:
            UserError, RunError: the trial failed.
        """

    def stop(self, name: str) -> None:
        """Free what a trial holds that was stopped or paused, or has failed; may be called twice.

        Runs in the sweep's process, as `close` does.
        """

    def close(self) -> None:
        """Free everything; no further trial will run."""


@dataclass(frozen=True)
class RendezvousMonitor:
    """A stage's `Monitor` that waits at a rendezvous after each evaluation."""

    rendezvous: Any
    asha: Asha | None
    """See `Trial.asha`."""

    def wants(self, step: int) -> bool:
        """True at steps where ASHA compares trials; see Monitor."""
        return self.asha is not None and self.asha.has_rung(step)

    def evaluated(self, step: int) -> None:
        """Wait until the trial's driver lets the stage continue."""
        try:
            ray.get(self.rendezvous.evaluated.remote(step))
        except RayActorError:
            # The driver was stopped, and its run will be stopped with it. An error here would make Ray Train start
            # the workers again meanwhile, with CPUs that are then never released.
            threading.Event().wait()


@dataclass(frozen=True)
class OnRayTrain:
    """Executor whose trials are Ray Train runs, each owned by its trial's driver, with which it ends."""

    progress: Progress

    def concurrency(self, recipes: list[Recipe], stage: str, machine: Machine) -> int:
        return min(max_concurrent(recipe, stage, machine) for recipe in recipes)

    def run(self, trial: Trial) -> Iterator[Report]:
        ctx = context_of(trial, self.progress)
        yield from follow(trial, ctx, CostMeter(trial, ctx))

    def stop(self, name: str) -> None:
        """Nothing to free: the Ray Train run ended with its driver."""

    def close(self) -> None:
        """Nothing to free."""


def follow(trial: Trial, ctx: StageContext[Any], meter: "CostMeter") -> Iterator[Report]:
    """Run a trial's stage, and yield a report of each evaluation; the stage waits until the next one is requested."""
    rendezvous: Any = ray.remote(num_cpus=0)(Rendezvous).remote()
    yield from _unreported(ctx, trial, meter)
    ended: queue.Queue[Exception | None] = queue.Queue()
    restarts = trial.recipe.trained[trial.stage].workers.max_restarts
    work = (replace(ctx, monitor=RendezvousMonitor(rendezvous, trial.asha)), restarts, ended)
    threading.Thread(target=_run_stage, args=work, daemon=True).start()
    arrived = rendezvous.arrived.remote()
    while ended.empty():
        if ray.wait([arrived], timeout=_POLL_S)[0]:
            yield report_at(ctx, meter, ray.get(arrived))
            ray.get(rendezvous.resume.remote())
            arrived = rendezvous.arrived.remote()
    if error := ended.get():
        raise error
    yield final_report(ctx, meter)


def context_of(trial: Trial, progress: Progress) -> StageContext[Any]:
    """The context of a trial's stage; writes the recipe into the run's folder.

    Ray Train must not restart workers here (`_run_stage` does): the controller of a stopped trial, while it is being
    killed, takes the death of its workers for a fault, and reserves CPUs for new ones that are then never released.
    """
    once = with_values(trial.recipe, {f"stages.{trial.stage}.train.workers.max_restarts": 0})
    ctx = stage_context(once, trial.stage, progress.labelled(trial.name))
    storage.write_bytes(storage.join(ctx.run, "recipe.yaml"), dump_recipe(trial.recipe).encode())
    return replace(chosen(ctx, cluster(ray.nodes())), forked_at=trial.forked_at)


class CostMeter:
    """Cost of a trial: devices x seconds, and tokens by its metrics log."""

    def __init__(self, trial: Trial, ctx: StageContext[Any]) -> None:
        self._devices = devices_of(ctx.name, ctx.stage)
        self._before, self._tokens, self._started = trial.device_seconds, trial.tokens, time.monotonic()

    def seconds(self, rows: Sequence[Mapping[str, Any]]) -> float:
        """Device-seconds since this run of the trial began; `rows` are those of its metrics log."""
        return (time.monotonic() - self._started) * self._devices

    def report(self, rows: list[dict[str, Any]], metrics: dict[str, float], *, final: bool = False) -> Report:
        """The report of the last of these rows."""
        seconds = self._before + self.seconds(rows)
        tokens = self._tokens + sum(int(row.get("tokens", 0)) for row in rows)
        return Report(int(rows[-1]["step"]), metrics, seconds, tokens, final)


def report_at(ctx: StageContext[Any], meter: CostMeter, step: int) -> Report:
    """The report of the evaluation at `step`, whose row is in the metrics log."""
    rows = [row for row in read_metrics(ctx.folder) if row["step"] <= step]
    return meter.report(rows, plain_metrics(rows[-1]))


def final_report(ctx: StageContext[Any], meter: CostMeter) -> Report:
    """The report of a stage that is done."""
    done = summary(ctx.run, ctx.name)
    assert done is not None
    rows = read_metrics(ctx.folder)
    cost = {key: value for key, value in rows[-1].items() if not key.startswith("heldout_")}  # of other weights
    return meter.report(rows, plain_metrics(cost | done["metrics"]), final=True)


def _unreported(ctx: StageContext[Any], trial: Trial, meter: CostMeter) -> Iterator[Report]:
    """Reports of evaluations that an earlier session committed but did not record."""
    last = checkpoint.latest(ctx.checkpoints)
    if last is None or summary(ctx.run, ctx.name) is not None:
        return
    for row in read_metrics(ctx.folder):
        if trial.reported < row["step"] <= last.step and any(key.startswith("heldout_") for key in row):
            yield report_at(ctx, meter, row["step"])


def _run_stage(ctx: StageContext[Any], restarts: int, ended: "queue.Queue[Exception | None]") -> None:
    """Run a stage to its end, restarting it from its last checkpoint at most `restarts` times if workers fail.

    Puts the error that ended it, or None, into `ended`.
    """
    try:
        for left in range(restarts, -1, -1):
            try:
                run_stage(ctx)
                break
            except WorkerFailedError:
                if not left:
                    raise
    except Exception as error:  # noqa: BLE001 - the driver raises it
        ended.put(error)
    else:
        ended.put(None)
