import json
import sys
from pathlib import Path

import pytest

from triptych.cli import main
from triptych.recipe import load_recipe


class Cli:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.monkeypatch = monkeypatch
        self.capsys = capsys

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        """Exit code, stdout, stderr of `triptych plan ...`."""
        self.monkeypatch.setattr(sys, "argv", ["triptych", "plan", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = self.capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Cli:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    return Cli(monkeypatch, capsys)


def test_recipe_tables_and_totals_on_stdout(plan: Cli, recipe_file: Path, tmp_path: Path) -> None:
    code, out, err = plan(recipe_file, "--set", "machine=8xh100-80", "--set", "seed=5")
    assert (code, err) == (0, "")
    resolved, _, tables = out.partition("\n\n")
    (tmp_path / "resolved.yaml").write_text(resolved)
    assert load_recipe(tmp_path / "resolved.yaml") == load_recipe(recipe_file, ["machine=8xh100-80", "seed=5"])
    for word in (
        "Placement on 8xh100-80",
        "2 engines",
        "Memory of one process",
        "activations",
        "Totals",
        "single",
        "tokens/s",
    ):
        assert word in tables


def test_json(plan: Cli, recipe_file: Path) -> None:
    code, out, err = plan(recipe_file, "--json", "--stage", "ppo", "--set", "machine=1xh100-80")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert set(found) == {"recipe", "placement", "estimate", "duration", "batches"}
    assert found["duration"]["stages"]["ppo"]["steps"] == 8
    assert found["recipe"]["stages"]["sft"]["train"]["batch"]["rows"] == 16
    assert found["placement"]["waves"] == [["ppo"]]
    assert list(found["estimate"]["stages"]) == ["ppo"]
    assert found["estimate"]["peak_bytes"] > 0
    assert found["estimate"]["stages"]["ppo"]["strategy"] == "single"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "stages.sft.train.epoch=1"], "stages.sft.train.epoch: unknown key; did you mean `epochs`?"),
        (["--set", "machine=h100"], "machine: `h100` is not known"),
        (["--stage", "pppo"], "no stage `pppo`; did you mean `ppo`?"),
        (["--set", "machine=1xh100-80", "--set", "stages.sft.train.workers.gpus=2"], "stages.sft does not fit machine"),
        (["--set", "model.base=smollm2"], "model.base: no folder and no built-in model is called `smollm2`"),
        (["--sett", "x"], "No such option"),
        (["--memory", "8T"], "memory: `8T` is no amount of memory; allowed: a number above 0 with GB, GiB, MB or MiB"),
        (["--plot", "x.svg"], "--plot draws one stage: give --stage; allowed: sft, reward, ppo"),
        (["--set", "machine=1xh100-80", "--measure"], "--measure is for this machine"),
        (["--explain-oom", "nothing"], "no run 'nothing' in runs"),
    ],
)
def test_what_is_wrong_goes_to_stderr_with_exit_code_2(
    plan: Cli, recipe_file: Path, arguments: list[str], message: str
) -> None:
    code, out, err = plan(recipe_file, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_every_error_of_the_file_is_told(plan: Cli, recipe_file: Path) -> None:
    recipe_file.write_text(recipe_file.read_text().replace("steps: 8", "steps: 0").replace("epochs", "epoch"))
    code, out, err = plan(recipe_file)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {recipe_file}:")
    assert len(err.splitlines()) == 3
    assert "Traceback" not in err


def test_missing_recipe(plan: Cli, tmp_path: Path) -> None:
    code, out, err = plan(tmp_path / "none.yaml")
    assert (code, out, err) == (2, "", f"error: {tmp_path}/none.yaml: no such file\n")


def test_what_auto_comes_to_and_what_it_costs(plan: Cli, recipe_file: Path) -> None:
    auto = ("--stage", "sft", "--set", "stages.sft.train.batch.micro_tokens=auto", "--memory", "4GB")
    code, out, _ = plan(recipe_file, *auto, "--price-per-hour", "2", "--set", "machine=1xl4-24")
    assert code == 0
    assert "Chosen for what is left to auto" in out
    assert "cost" in out
    code, out, _ = plan(recipe_file, *auto, "--json", "--set", "machine=1xl4-24")
    choice = json.loads(out)["choices"]["sft"]
    assert choice["best"]["fits"]
    assert choice["best"]["peak_bytes"]["high"] <= 4 * 10**9


@pytest.mark.slow
def test_grid_and_plot(plan: Cli, recipe_file: Path, tmp_path: Path) -> None:
    at = ("--stage", "sft", "--set", "machine=1xl4-24", "--grid")
    code, out, _ = plan(recipe_file, *at, "--json", "--plot", tmp_path / "grid.svg")
    grid = json.loads(out)["sft"]
    assert code == 0
    assert (tmp_path / "grid.svg").read_text().count("<circle") == len(grid) > 20
    assert {row["checkpointing"] for row in grid} == {"none", "selective", "full"}
    code, out, _ = plan(recipe_file, *at)
    assert "Micro-batch, memory and speed of stages.sft" in out


def test_nothing_to_plan(plan: Cli) -> None:
    code, out, err = plan()
    assert (code, out, err) == (2, "", "error: give a RECIPE, or --explain-oom RUN\n")


def test_rows_that_a_run_would_refuse_are_refused(plan: Cli, recipe_file: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.csv"
    rows.write_text("ask,reply\nWhy?,Dull.\n")
    sets = ["--set", "machine=8xh100-80", "--stage", "sft", "--set", f"stages.sft.data.train.path={rows}"]
    code, out, err = plan(recipe_file, *sets)
    assert (code, out) == (2, "")
    assert "rows.csv: 1 of 1 rows are malformed as sft" in err
    assert "perhaps columns: {prompt: ask, response: reply}" in err.replace("\n", " ")
    named = "stages.sft.data.train.columns={prompt: ask, response: reply}"
    assert plan(recipe_file, *sets, "--set", named)[0] == 0


def test_rows_are_rendered_as_a_run_renders_them(
    plan: Cli, recipe_file: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "prompts.jsonl"
    rows.write_text(json.dumps({"prompt": "Hi"}) + "\n" + json.dumps({"prompt": "warm " * 200}) + "\n")
    sets = ["--set", "machine=8xh100-80", "--set", f"model.base={tiny_model_dir}"]
    sets += ["--set", f"stages.ppo.data.train.path={rows}", "--set", "stages.ppo.rollout.max_prompt_tokens=64"]
    code, out, err = plan(recipe_file, *sets)
    assert (code, out) == (2, "")
    assert "stages.ppo.data.train: 1 of 2 prompts are longer than 64 tokens" in err.replace("\n", " ")
    code, out, err = plan(recipe_file, *sets, "--set", "stages.ppo.data.train.max_bad_rows=1")
    assert (code, err) == (0, "")


def test_a_base_that_a_run_would_refuse_is_refused(plan: Cli, recipe_file: Path, tiny_model_copy: Path) -> None:
    config = json.loads((tiny_model_copy / "config.json").read_text()) | {"is_causal": False}
    (tiny_model_copy / "config.json").write_text(json.dumps(config))
    code, out, err = plan(recipe_file, "--set", "machine=8xh100-80", "--set", f"model.base={tiny_model_copy}")
    assert (code, out) == (2, "")
    assert "lets tokens see later ones (is_causal: false in config.json)" in err.replace("\n", " ")
