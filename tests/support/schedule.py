"""Tests on two processes: files that share what takes long to start stay together, and the slow ones start first."""

from collections.abc import Sequence

import pytest
from xdist.scheduler import LoadScopeScheduling

CLUSTER, RANKS = "a cluster of three nodes", "two ranks"
TOGETHER = {
    "tests/cluster/test_endpoint.py": CLUSTER,
    "tests/cluster/test_submit.py": CLUSTER,
    "tests/train/test_group.py": RANKS,
    "tests/train/test_optimizer.py": RANKS,
    "tests/train/test_strategies.py": RANKS,
}
"""File -> what it shares with others by a fixture; all of these run in one process."""


class BySharedStart(LoadScopeScheduling):
    """Whole files go to whichever process is free, together with those that share a fixture with them."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return TOGETHER.get(file, file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> BySharedStart | None:
    """Where `--dist loadscope` is asked for; any other order stays xdist's own."""
    return BySharedStart(config, log) if config.getoption("dist") == "loadscope" else None


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A long file that began last would leave the other process idle."""
    if hasattr(config, "workerinput"):
        items[:] = slow_files_first(items)


def slow_files_first(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """Files with the most slow tests begin; the order within a file stays."""
    slow = {item.nodeid.partition("::")[0] for item in items if item.get_closest_marker("slow")}
    return sorted(items, key=lambda item: item.nodeid.partition("::")[0] not in slow)
