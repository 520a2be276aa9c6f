"""The GPU check runs without a GPU too: the same code on the CPU, with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
PARTS = {"properties", "planned", "speed", "together", "every_method", "levers", "strategies"}
ABSENT = ("ray", "vllm", "pyarrow", "datasets", "platformdirs", "sqlalchemy", "fastapi", "openai")
"""Packages that a machine with only torch, transformers and peft lacks."""
BARE = f"""
import runpy, sys
sys.path.insert(0, {str(HERE)!r})
sys.modules.update(dict.fromkeys({ABSENT!r}))
runpy.run_path({str(HERE / "run.py")!r}, run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_it_runs_on_the_cpu_and_without_ray(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--shape", "tiny", "--rounds", "1", "--steps", "1", "--out", str(out)]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout
    results = json.loads(out.read_text())["results"]
    assert {result["part"] for result in results} == PARTS
    assert {result["verdict"] for result in results} == {"ok", "measured"}
    assert len([result for result in results if result["verdict"] == "ok"]) > 60
    assert all(result["case"] in done.stdout for result in results)
