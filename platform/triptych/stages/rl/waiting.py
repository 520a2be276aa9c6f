"""Time that engines and learner spend without work in a step, and the age of what is learned from."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from triptych.rollout.trajectory import Trajectory
from triptych.stages.rl.worker import RlWorker


def busy_seconds(worker: RlWorker) -> float:
    """Seconds that each engine has sampled since the pool started, summed; 0 on ranks that do not ask the pool."""
    if worker.learner.group.rank != 0:
        return 0.0
    return float(sum(engine["seconds"] for engine in worker.pool.stats()["engines"]))


def waiting(worker: RlWorker, busy: float, seconds: Mapping[str, float]) -> dict[str, float]:
    """Shares of a step: `engines_idle`, in which an engine did not sample, and `learner_waits`, for answers.

    Rank 0 knows them. `busy`: seconds of `busy_seconds` in the step; `seconds`: of its phases.
    """
    whole = sum(seconds.values())
    if worker.learner.group.rank != 0 or not whole:
        return {}
    engines = worker.stage.rollout.engines
    idle = 1.0 - busy / (engines * whole)
    return {"engines_idle": max(0.0, idle), "learner_waits": seconds.get("sample", 0.0) / whole}


def staleness(newest: int, records: Sequence[Trajectory]) -> dict[str, float]:
    """Steps between the weights that drew each token and the newest ones, of version `newest`.

    Mean over tokens, and the most; 0 where every answer is of the newest weights.
    """
    ages = [newest - version for record in records for version in record.versions]
    return {"staleness": fmean(ages), "staleness_max": float(max(ages))}
