"""The check of an adapter that an engine has loaded: once, in the background, in nobody's way."""

import asyncio
import logging
from collections.abc import Callable, Sequence

import pytest

from triptych.models.adapter_effect import Probes, choose
from triptych.registry import Registry
from triptych.serve.effect_checks import EffectChecks

ASKED = [[i, i + 1, i + 2] for i in range(24)]
BASE = [[-1.0 - i / 10, -2.0] for i in range(24)]
ADAPTER = [[-1.5 - i / 20, -2.5 + i / 30] for i in range(24)]
PROBES = choose(ASKED, BASE, ADAPTER, "float32")


def rows(values: Sequence[Sequence[float]], sequences: Sequence[Sequence[int]]) -> list[list[float]]:
    return [list(values[sequence[0]]) for sequence in sequences]


async def checked(registry: Registry, ref: str, answers: dict[str, list[list[float]]]) -> list[str]:
    """The models that are asked for, while `ref` is loaded twice by an engine that gives these answers."""
    asked: list[str] = []

    async def ask(model: str, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        asked.append(model)
        return rows(answers[model], sequences)

    checks = EffectChecks(registry, ask, "tiny")
    checks.start(ref)
    checks.start(ref)
    await asyncio.gather(*checks._running.values())
    return asked


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[str, str]]]:
    import ray.util.metrics  # noqa: F401 - sets Ray's loggers up

    for name in ("ray", "ray.serve"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    caplog.set_level(logging.INFO, "ray.serve")
    return lambda: [(record.levelname, record.getMessage()) for record in caplog.records if "adapter" in record.message]


async def test_the_right_adapter_is_noted_and_a_wrong_one_warned_of(
    registry: Registry, told: Callable[[], list[tuple[str, str]]]
) -> None:
    registry.add_probes("opinion@2", PROBES)
    assert await checked(registry, "opinion@2", {"opinion@2": ADAPTER, "tiny": BASE}) == ["opinion@2", "tiny"]
    await checked(registry, "opinion@2", {"opinion@2": BASE, "tiny": BASE})
    (right, said), (wrong, warned) = told()
    assert (right, "opinion@2: it answers as it was trained" in said) == ("INFO", True)
    assert (wrong, "opinion@2: the base alone answers" in warned) == ("WARNING", True)


async def test_the_version_before_is_named(registry: Registry, told: Callable[[], list[tuple[str, str]]]) -> None:
    older = [[value - 0.3 + (i % 3) / 5 for value in row] for i, row in enumerate(ADAPTER)]
    registry.add_probes("opinion@1", Probes(PROBES.sequences, PROBES.base, _tuples(older), "float32"))
    registry.add_probes("opinion@2", PROBES)
    await checked(registry, "opinion@2", {"opinion@2": older, "tiny": BASE})
    assert "opinion@2: opinion@1 answers" in told()[0][1]


async def test_nobody_is_asked_about_an_adapter_without_values(registry: Registry) -> None:
    assert await checked(registry, "opinion@1", {}) == []


async def test_a_check_that_fails_is_a_warning_alone(
    registry: Registry, told: Callable[[], list[tuple[str, str]]]
) -> None:
    registry.add_probes("opinion@2", PROBES)
    await checked(registry, "opinion@2", {})
    assert told() == [("WARNING", "the effect of adapter opinion@2 could not be checked")]


def _tuples(values: list[list[float]]) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(row) for row in rows(values, PROBES.sequences))
