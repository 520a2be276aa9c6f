"""The check after a weight sync: what it concludes from three sets of log-probabilities."""

import random

import pytest

from triptych.errors import RunError
from triptych.rollout.sync_check import check_sync

Rows = list[list[float]]


def rows(seed: int, size: float, around: Rows | None = None) -> Rows:
    draw = random.Random(seed)
    around = around or [[-1.0] * 32 for _ in range(16)]
    return [[value + draw.gauss(0, size) for value in row] for row in around]


OLD = rows(0, 1.0)
NEW = rows(1, 0.02, around=OLD)
"""One update: 0.016 nats a token on average."""


def test_engines_on_the_new_weights_pass() -> None:
    report = check_sync([rows(2, 0.005, NEW), NEW], NEW, OLD, tolerance=0.01)
    assert report.moved == pytest.approx(0.016, abs=0.002)
    assert report.gap == pytest.approx(0.004, abs=0.001)
    assert report.engines[0].share == pytest.approx(1.0, abs=0.05)
    assert report.engines[1].share == pytest.approx(1.0)
    assert report.engines[1].error == pytest.approx(0.0, abs=1e-6)
    assert all(engine.conclusive for engine in report.engines)


@pytest.mark.parametrize("noise", [0.0, 0.005, 0.03])
def test_an_engine_on_the_old_weights_is_named_within_any_tolerance(noise: float) -> None:
    """At a noise of 0.03 both distances look alike (0.024 and 0.029 nats); the share of the update does not."""
    with pytest.raises(RunError, match="engine 1 still runs the old weights"):
        check_sync([NEW, rows(3, noise, OLD)], NEW, OLD, tolerance=1.0)


def test_noise_far_above_the_update_gives_no_verdict_rather_than_a_wrong_one() -> None:
    for seed in range(20):
        for truth in (OLD, NEW):
            report = check_sync([rows(100 + seed, 1.0, truth)], NEW, OLD, tolerance=10.0)
            assert not report.engines[0].conclusive


def test_an_engine_on_other_weights_is_named() -> None:
    with pytest.raises(RunError, match=r"engine 0 is off the learner by 0\.0"):
        check_sync([rows(4, 0.1, NEW)], NEW, OLD, tolerance=0.05)
    with pytest.raises(RunError, match="engine 0 is off"):
        check_sync([rows(4, 0.1, NEW)], NEW, None, tolerance=0.05)


def test_without_an_update_there_is_only_the_distance() -> None:
    for old in (None, NEW):
        report = check_sync([rows(5, 0.01, NEW)], NEW, old, tolerance=0.05)
        assert report.engines[0].share is None
        assert not report.engines[0].conclusive
        assert report.moved == (None if old is None else 0.0)


def test_hand_worked_share() -> None:
    """old 0, new (1, -1), engine (0.75, -0.25): share (0.75 + 0.25) / 2, residuals (0.25, 0.25)."""
    report = check_sync([[[0.75, -0.25]]], [[1.0, -1.0]], [[0.0, 0.0]], tolerance=1.0)
    engine = report.engines[0]
    assert engine.share == pytest.approx(0.5)
    assert engine.gap == pytest.approx(0.5)
    assert engine.error == pytest.approx(0.25 / 2**0.5)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ([[float("nan")]], "not finite"),
        ([[float("-inf")]], "not finite"),
        ([], "empty"),
        ([[-1.0, -1.0]], "other tokens"),
    ],
)
def test_unusable_numbers_fail(engine: Rows, message: str) -> None:
    with pytest.raises(RunError, match=message):
        check_sync([engine], [[-1.0]], None, tolerance=10.0)
