"""The check after every weight sync: do the engines run the weights that were just sent?

An engine's log-probabilities of fixed sequences are compared with the learner's before and after the update. In low
precision they differ from the learner's by more than one update may move them, so no single distance can tell the two
apart; the share of the update that the engine shows can (`models.adapter_effect`): it is 1 with the new weights and 0
with the old ones, plus noise.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from triptych.engines.base import Logprobs
from triptych.errors import RunError
from triptych.models.adapter_effect import CONFIDENCE, UnusableError, fit, flat, mean_gap


@dataclass(frozen=True)
class EngineCheck:
    """One engine's log-probabilities compared with the learner's."""

    gap: float
    """Mean |engine - new| per token, in nats."""
    share: float | None
    """Share of the update that the engine shows; None without an update to look for."""
    error: float | None
    """Standard error of `share`."""

    @property
    def conclusive(self) -> bool:
        """True where the update is large enough against the noise to tell new weights from old ones."""
        return self.error is not None and CONFIDENCE * self.error < 0.5


@dataclass(frozen=True)
class SyncCheck:
    """The comparison of every engine after one sync."""

    engines: tuple[EngineCheck, ...]
    moved: float | None
    """Mean |new - old| per token by the learner, in nats; None at the first sync."""

    @property
    def gap(self) -> float:
        """Largest gap of any engine."""
        return max(engine.gap for engine in self.engines)


def check_sync(
    engine_logprobs: Sequence[Logprobs], learner_new: Logprobs, learner_old: Logprobs | None, tolerance: float
) -> SyncCheck:
    """Compare each engine with the learner after a sync.

    Args:
        engine_logprobs: for each engine, what `RolloutPool.logprobs` gave, at temperature 1.
        learner_new: the learner's own, with the weights just sent.
        learner_old: with the weights before; None at the first sync.
        tolerance: largest mean |engine - new| of a token, in nats.

    Raises:
        RunError: an engine still runs the old weights, is off by more than the tolerance, or gave no usable numbers.
    """
    new = _flat(learner_new, "the learner")
    old = _flat(learner_old, "the learner before the update") if learner_old is not None else None
    reports = []
    for index, logprobs in enumerate(engine_logprobs):
        engine = _flat(logprobs, f"rollout engine {index}")
        if [len(row) for row in logprobs] != [len(row) for row in learner_new]:
            raise RunError(f"rollout engine {index} answered the check after a sync for other tokens than were asked")
        report = _compare(engine, new, old)
        if report.share is not None and report.error is not None and report.share + CONFIDENCE * report.error < 0.5:
            raise RunError(
                f"rollout engine {index} still runs the old weights: its log-probabilities show {report.share:.0%} of "
                f"the update (standard error {report.error:.0%}); the sync did not reach it"
            )
        if report.gap > tolerance:
            raise RunError(
                f"rollout engine {index} is off the learner by {report.gap:.4f} nats a token after the sync, "
                f"more than {tolerance:.4f}: it runs other weights or another precision"
            )
        reports.append(report)
    return SyncCheck(tuple(reports), None if old is None else mean_gap(new, old))


def _flat(logprobs: Logprobs, whose: str) -> list[float]:
    try:
        return flat(logprobs)
    except UnusableError as error:
        raise RunError(f"the check after a sync: log-probabilities of {whose} {error}") from None


def _compare(engine: list[float], new: list[float], old: list[float] | None) -> EngineCheck:
    gap = mean_gap(engine, new)
    if old is None:
        return EngineCheck(gap, None, None)
    seen, update = ([v - o for v, o in zip(values, old, strict=True)] for values in (engine, new))
    found = fit(seen, update)
    return EngineCheck(gap, None, None) if found is None else EngineCheck(gap, found.share, found.error)
