"""The command line as a process: its exit codes, and how fast it answers."""

import subprocess
import sys
from pathlib import Path

import pytest

from triptych import __version__, cli
from triptych.errors import RunError, UserError

TRIPTYCH = Path(sys.executable).parent / "triptych"


def call(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TRIPTYCH, *args], capture_output=True, text=True, check=False, timeout=30)


def test_version() -> None:
    done = call("--version")
    assert (done.returncode, done.stdout) == (0, f"triptych {__version__}\n")


def test_unknown_verb_is_a_wrong_request() -> None:
    done = call("no-such-verb")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "no-such-verb" in done.stderr


@pytest.mark.slow
def test_help_imports_nothing_heavy() -> None:
    assert call("--help").returncode == 0
    code = "import sys, triptych.cli; print([m for m in ('torch', 'ray', 'vllm', 'transformers') if m in sys.modules])"
    heavy = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("field `lr` must be positive"), 2, "error: field `lr` must be positive\n"),
        (RunError("a worker died"), 1, "error: a worker died\n"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_become_exit_codes(
    error: BaseException, code: int, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fail)
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == text
