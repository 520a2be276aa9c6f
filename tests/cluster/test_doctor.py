"""What `triptych doctor` says of a machine that is fine, and of one that is not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from triptych.cluster import doctor

TRIPTYCH = Path(sys.executable).parent / "triptych"


def test_a_version_that_differs_from_the_lock_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LOCKS", tmp_path)
    assert list(doctor._lock_drift()) == []
    for lock in ("cpu.lock", "gpu.lock"):
        (tmp_path / lock).write_text("# comment\npydantic==0.0.1\nno-such-package==1.0\n", encoding="utf-8")
    [check] = doctor._lock_drift()
    assert check.status == "warning"
    assert "not 0.0.1" in check.found
    assert "no-such-package none, not 1.0" in check.found
    assert ".lock" in check.advice


def test_the_real_locks_are_found_from_a_checkout() -> None:
    assert {path.name for path in doctor.LOCKS.glob("*.lock")} == {"cpu.lock", "gpu.lock"}


def test_folder_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    check = doctor._disk("run folder", tmp_path / "a" / "b")
    assert check.status in {"ok", "warning"}
    assert not (tmp_path / "a").exists()


def test_a_plugin_that_is_turned_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert doctor._plugin().status == "ok"
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert doctor._plugin().status == "warning"


@pytest.mark.slow
def test_this_machine_has_all_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    done = subprocess.run([TRIPTYCH, "doctor", "--json"], capture_output=True, text=True, check=False, timeout=200)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 0, checks
    assert {"Python", "packages", "torch", "GPU", "vLLM", "vLLM plugin", "Ray", "cores", "memory"} <= set(checks)
    assert checks["Ray"]["status"] == "ok"


@pytest.mark.slow
def test_what_is_missing_ends_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    done = subprocess.run([TRIPTYCH, "doctor"], capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 1
    missing = [line for line in done.stdout.splitlines() if line.startswith("missing")]
    assert [line.split()[1] for line in missing] == ["Ray", "cache"]
    assert "set TRIPTYCH_CACHE" in done.stdout
