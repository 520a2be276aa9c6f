"""`triptych methods`: every method of the table, its share of a model, and why a place is closed to it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from triptych.cli import app
from triptych.methods import METHODS


def test_the_table_as_json() -> None:
    result = CliRunner().invoke(app, ["methods", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found.keys() == METHODS.keys()
    assert found["lora"]["parameters"] == 4_884_480
    assert found["lora"]["cannot"] == {}
    assert found["full"]["share"] == 1
    assert found["houlsby"]["cannot"]["ppo"].startswith("houlsby cannot be merged into the weights")
    assert found["vblora"]["cannot"].keys() == {"fsdp", "this model"}
    assert found["hra"]["cannot"].keys() == {"quantized base"}


def test_the_table_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["methods"])
    assert all(name in result.output for name in METHODS)
    assert "- ppo: houlsby cannot be merged into the weights" in result.output


def test_the_table_loads_no_torch() -> None:
    code = "import sys, triptych.methods, triptych.plan; sys.exit(any(m in sys.modules for m in ('torch', 'peft')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
