"""Runs of all tests, folder by folder: which are skipped, and what is printed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import run_tests

RUNNER = """
import pathlib, sys
for name in sys.argv[1:]:
    path = pathlib.Path(name)
    for file in [path] if path.is_file() else path.rglob("test_*.py"):
        exec(file.read_text())
"""
"""Stands where pytest does, which takes seconds to start."""


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of one file, and two folders with a test each."""
    files = {
        "package.py": "",
        ".gitignore": "build/\n",
        "tests/one/test_a.py": "def test_a(): ...",
        "tests/two/test_b.py": "def test_b(): ...",
        "tests/test_c.py": "def test_c(): ...",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    monkeypatch.setattr(run_tests, "ROOT", tmp_path)
    monkeypatch.setattr(run_tests, "RESULTS", tmp_path / "build" / "test-all")
    monkeypatch.setattr(run_tests, "PYTEST", [sys.executable, "-c", RUNNER])
    return tmp_path


def passed_already(capsys: pytest.CaptureFixture[str]) -> list[str]:
    lines = capsys.readouterr().out.splitlines()
    return [line.removesuffix(" passed already") for line in lines if line.endswith(" passed already")]


def test_what_passed_runs_again_only_when_code_changes(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tests.main([]) == 0
    assert passed_already(capsys) == []
    assert run_tests.main([]) == 0
    assert passed_already(capsys) == ["tests", "tests/one", "tests/two"]
    (checkout / "tests/one/test_a.py").write_text("assert 1")
    assert run_tests.main([]) == 0
    assert passed_already(capsys) == ["tests", "tests/two"]
    (checkout / "package.py").write_text("x = 1\n")
    assert run_tests.main(["tests/two"]) == 0
    assert passed_already(capsys) == []
    assert run_tests.main(["tests/two", "--again"]) == 0
    assert passed_already(capsys) == []


def test_a_folder_that_fails_is_named_and_runs_again(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (checkout / "tests/two/test_b.py").write_text("assert False")
    for _ in range(2):
        assert run_tests.main(["tests/one", "tests/two"]) == 1
        assert "| FAILED |" in next(line for line in capsys.readouterr().out.splitlines() if "| tests/two |" in line)
    assert [json.loads(path.read_text())["seconds"] >= 0 for path in checkout.glob("build/test-all/*")] == [True]


def test_a_folder_without_tests_is_refused(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_tests.main(["tests/three"])
    assert "no tests in tests/three; allowed: tests, tests/one, tests/two" in capsys.readouterr().err
