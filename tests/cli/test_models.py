"""`triptych models`: the table of families, and what is known of one base."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from triptych.cli import app
from triptych.errors import UserError
from triptych.models.families import tried_families


def test_the_table_as_json() -> None:
    result = CliRunner().invoke(app, ["models", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.output)
    assert found.keys() == tried_families().keys()
    assert (found["llama"]["trained"], found["llama"]["engine"], found["llama"]["plan"]) == ("packed", "equal", "")
    assert found["lfm2"]["padded_because"] == "it has layers of the kind conv"


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_for_people(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """A line for each family; reasons stand below, once."""
    monkeypatch.setenv("COLUMNS", str(width))
    result = CliRunner().invoke(app, ["models"])
    lines = result.output.splitlines()
    assert result.exit_code == 0
    assert max(map(len, lines)) <= width
    for name in tried_families():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert line.split()[1] in ("packed", "padded")
    assert " ".join(result.output.split()).count("padded: it has layers of the kind conv (lfm2, lfm2_moe)") == 1


def test_one_base(tiny_model_dir: Path) -> None:
    found = json.loads(CliRunner().invoke(app, ["models", str(tiny_model_dir), "--json"]).output)
    assert (found["family"], found["context"], found["tried"]["trained"]) == ("llama", 512, "packed")
    assert found["parameters"] > 0
    told = CliRunner().invoke(app, ["models", "smollm2-135m-instruct"]).output
    assert "134,515,008" in told
    assert "engine" in told


def test_a_base_of_an_untried_family(tmp_path: Path) -> None:
    """Its sizes are known all the same."""
    config = {"model_type": "codegen", "vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "rotary_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert json.loads(CliRunner().invoke(app, ["models", str(tmp_path), "--json"]).output)["tried"] is None
    assert "tried       no:" in CliRunner().invoke(app, ["models", str(tmp_path)]).output


def test_no_such_base_is_refused() -> None:
    result = CliRunner().invoke(app, ["models", "./nowhere"])
    assert isinstance(result.exception, UserError)
