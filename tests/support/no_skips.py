"""Continuous integration has every service that tests need, so a test that is skipped there has failed."""

import os
import re
from collections.abc import Generator

import pytest

ALLOWED = (
    r"no GPU",
    r"no data sets in ",  # they are handed out beside the checkout
    r"no custom resource definitions in ",  # likewise
    r"one core only",
    r"a CUDA build is what is wanted here",
    r"no name spaces here",  # a container may forbid them
    r"may not mount a file system here",
)
"""Reasons that a machine may have; a missing package, program or server is none."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CI=true in the environment, what was skipped for any other reason counts as failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        reason = reason_of(report)
        if not is_allowed(reason):
            report.outcome = "failed"
            report.longrepr = f"{item.nodeid} was skipped, which CI does not allow: {reason}"
    return report


def reason_of(report: pytest.TestReport) -> str:
    """What a skipped test gave as its reason."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return reason.removeprefix("Skipped: ")


def is_allowed(reason: str) -> bool:
    """Whether the machine, not the setup, is why."""
    return any(re.match(allowed, reason) for allowed in ALLOWED)
