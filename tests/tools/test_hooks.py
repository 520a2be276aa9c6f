"""What the tests' own hooks say of a run: seconds by folder, and skips that CI does not allow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFTEST = 'pytest_plugins = ["tests.support.no_skips", "tests.support.schedule", "tests.support.times"]\n'
TESTS = """
import time
import pytest

def test_missing():
    pytest.skip("moto is not installed")

def test_allowed():
    pytest.skip("no data sets in ../shared/data")

@pytest.mark.skipif(True, reason="no server")
def test_marked():
    pass

@pytest.mark.xfail(reason="known")
def test_known():
    assert False

def test_long():
    time.sleep(0.3)
"""


def outcome(folder: Path, *options: str, **environment: str) -> str:
    """What pytest printed."""
    (folder / "sub").mkdir()
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "sub" / "test_it.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "xdist", "-rf", *options],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.stdout


@pytest.mark.slow
def test_a_skip_for_want_of_a_service_fails_in_ci(tmp_path: Path) -> None:
    said = outcome(tmp_path, "-n", "2", "--dist", "loadscope", CI="true")
    assert "1 failed, 1 passed, 1 skipped, 1 xfailed, 1 error" in said
    assert "was skipped, which CI does not allow: moto is not installed" in said
    assert "was skipped, which CI does not allow: no server" in said


@pytest.mark.slow
def test_elsewhere_a_skip_is_a_skip_and_seconds_stand_by_folder(tmp_path: Path) -> None:
    said = outcome(tmp_path, CI="")
    assert "1 passed, 3 skipped, 1 xfailed" in said
    [line] = [line for line in said.splitlines() if line.endswith("  sub")]
    assert 0.3 <= float(line.split()[0]) < 10
