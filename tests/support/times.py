"""Seconds of tests by folder, printed at the end of every run."""

from collections import defaultdict
from pathlib import PurePosixPath

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Folders of tests, the longest first; run by several processes, their seconds are added."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[folder_of(report.nodeid)] += report.duration
    if not seconds:
        return
    terminalreporter.section("seconds by folder")
    for folder, spent in sorted(seconds.items(), key=lambda row: -row[1]):
        terminalreporter.write_line(f"{spent:7.1f}  {folder}")
    terminalreporter.write_line(f"{sum(seconds.values()):7.1f}  in all")


def folder_of(nodeid: str) -> str:
    """`tests/train` of `tests/train/test_usage.py::test_peak`."""
    return str(PurePosixPath(nodeid.partition("::")[0]).parent)
