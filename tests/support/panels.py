"""What the dashboards show of a real run, held against what they must show."""

import time
from collections.abc import Iterable

import pytest

from tests.support.scraping import Prometheus
from triptych.observe.dashboards import expressions

GPU = "{{instance}} {{GpuIndex}}"
STAGE = "{{run}} {{stage}}"
WITHOUT = {
    ("training", "Model FLOPs utilisation", STAGE): "the peak of a CPU is not known",
    ("training", "Steps skipped: gradient not finite", STAGE): "every gradient is finite",
    ("training", "Workers that died", ""): "none dies",
    ("rl", "Reward", f"prompts of one score {STAGE}"): "PPO does not compare the answers to a prompt",
    ("rl", "Updates skipped: gradient not finite", STAGE): "every gradient is finite",
    ("serving", "Preemptions", ""): "the cache has room for all",
    ("cluster", "Nodes", "pending"): "the autoscaler's own port has it, where there is an autoscaler",
    ("cluster", "GPU", GPU): "no GPU",
    ("cluster", "GPU memory", GPU): "no GPU",
    ("cluster", "GPU power", GPU): "no GPU",
    ("cluster", "GPU temperature", GPU): "no GPU",
    ("cluster", "Processes ended", "for want of memory"): "there is enough",
    ("cluster", "Processes ended", "unexpectedly"): "none ends so",
}
"""(dashboard, panel, legend) -> why an undisturbed run on one machine without a GPU has nothing to show there."""


PATIENCE_S = 30


def assert_shown(server: Prometheus | None, boards: Iterable[str], since: float) -> None:
    """Every panel of these dashboards has a number since that second, but for those that cannot: they have none.

    Prometheus takes every expression, and none of the rules met data that it cannot work with. Skips where Prometheus
    is not installed.
    """
    if server is None:
        pytest.skip("prometheus is not installed (Debian: prometheus)")
    asked = {place[:3] for place in expressions() if place[0] in boards}
    assert {place for place in WITHOUT if place[0] in boards} <= asked
    expected = asked - WITHOUT.keys()
    deadline = time.monotonic() + PATIENCE_S
    while missing := expected - (found := _shown(server, boards, since)):
        assert time.monotonic() < deadline, f"without data: {sorted(missing)}"
        time.sleep(0.5)
    assert found == expected, "these have data after all: take them off the list"
    rules = [rule for group in server.ask("rules")["groups"] for rule in group["rules"]]
    assert not [(rule["name"], rule["lastError"]) for rule in rules if rule["health"] == "err"]


def _shown(server: Prometheus, boards: Iterable[str], since: float) -> set[tuple[str, str, str]]:
    now = time.time()
    asked = [place for place in expressions() if place[0] in boards]
    return {place[:3] for place in asked if server.lines(place[3], since, now, 1)}
