"""`triptych methods`: every method of the table, its share of a model, and why a place is closed to it."""

import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from triptych.cli import app, main
from triptych.methods import METHODS
from triptych.recipe.method import PRESETS


def test_the_table_as_json() -> None:
    result = CliRunner().invoke(app, ["methods", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found.keys() == METHODS.keys() | PRESETS.keys()
    assert found["lora"]["parameters"] == 4_884_480
    assert found["lora"]["cannot"] == {}
    assert found["full"]["share"] == 1
    assert found["houlsby"]["cannot"]["ppo"].startswith("houlsby cannot be merged into the weights")
    assert found["vblora"]["cannot"].keys() == {"fsdp", "this model"}
    assert found["hra"]["cannot"].keys() == {"quantized base"}


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_table_for_people(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """One line or two for a method; what is said in sentences has a place where there is room."""
    monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(app, ["methods"])
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= width
    for name in (*METHODS, *PRESETS):
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert len(line.split("  ")) > 3
    text = " ".join(result.output.split())
    assert "- not with ppo: cannot be merged into the weights, and PPO's engines run merged weights or a LoRA (" in text
    assert ("two low-rank matrices" in text) == (width == 200)


@pytest.mark.parametrize("name", ["lora", "unipelt"])
def test_all_that_is_known_of_one(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    result = CliRunner().invoke(app, ["methods", name])
    text = " ".join(result.output.split())
    assert max(map(len, result.output.splitlines())) <= 80
    found = json.loads(CliRunner().invoke(app, ["methods", name, "--json"]).output)
    assert all(found[what] in text for what in ("about", "trains", "served", "paper"))
    assert found["parts"] == (["lora"] if name == "lora" else ["gated_prefix", "gated_pfeiffer", "gated_lora"])
    assert ("each token has its own" in text) == (name == "unipelt")


def test_an_unknown_method_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["triptych", "methods", "loraa"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "there is no method 'loraa'; did you mean lora? allowed: lora, " in capsys.readouterr().err


@pytest.mark.slow
def test_the_table_loads_no_torch() -> None:
    code = "import sys, triptych.methods, triptych.plan; sys.exit(any(m in sys.modules for m in ('torch', 'peft')))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
