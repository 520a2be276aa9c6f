"""`triptych runs` on a made run: tables, JSON, the report's path, and wrong names."""

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from triptych.cli import main

RECIPE = "name: {0}\nmodel: {{base: tiny}}\nstages:\n  sft: {{kind: sft}}\n  ppo: {{kind: ppo}}\n"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs: `done` is finished but for its PPO, which has a checkpoint; `new` has only begun. And a stranger."""
    for name in ("done", "new"):
        stage = tmp_path / name / "stages" / "sft"
        stage.mkdir(parents=True)
        (tmp_path / name / "recipe.yaml").write_text(RECIPE.format(name))
        (stage / "state.json").write_text('{"parents": {}}')
    sft = tmp_path / "done" / "stages" / "sft"
    (sft / "metrics").mkdir()
    (sft / "metrics" / "step-00000002.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.5}\n')
    peak = {"low": 2**20, "expected": 2 * 2**20, "high": 3 * 2**20}
    planned = {"predicted": {"peak_bytes": peak, "tokens_per_second": 300}, "actual": {"tokens_per_second": 200}}
    (sft / "plan.json").write_text(json.dumps(planned))
    (sft / "summary.json").write_text('{"kind": "sft", "metrics": {"heldout_loss": 1.25}, "registered": "done-sft@1"}')
    checkpoint = tmp_path / "done" / "stages" / "ppo" / "checkpoints" / "step-00000004"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (tmp_path / "artifacts").mkdir()
    return tmp_path


def triptych(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["triptych", *args])
    with pytest.raises(SystemExit) as exit_:
        main()
    code = exit_.value.code
    return code if isinstance(code, int) else 0


def test_list(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert triptych(monkeypatch, "runs", "list", "--json", "--runs", str(runs)) == 0
    assert json.loads(capsys.readouterr().out) == [
        {"name": "done", "base": "tiny", "stages": {"sft": "done", "ppo": "step 4"}},
        {"name": "new", "base": "tiny", "stages": {"sft": "begun", "ppo": "waiting"}},
    ]
    assert triptych(monkeypatch, "runs", "list", "--runs", str(runs)) == 0
    assert "sft done, ppo step 4" in capsys.readouterr().out


def test_show(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert triptych(monkeypatch, "runs", "show", "done", "--json", "--runs", str(runs)) == 0
    sft = json.loads(capsys.readouterr().out)["stages"]["sft"]
    memory, speed = sft.pop("plan")["compared"]
    assert (memory["predicted"], memory["high"], memory["actual"], memory["ratio"]) == (2**21, 3 * 2**20, None, None)
    assert (speed["predicted"], speed["actual"], speed["ratio"]) == (300, 200, 1.5)
    assert sft == {
        "kind": "sft",
        "status": "done",
        "steps": 2,
        "registered": "done-sft@1",
        "metrics": {"heldout_loss": 1.25},
        "stopped": None,
    }
    assert triptych(monkeypatch, "runs", "show", "done", "--runs", str(runs)) == 0
    shown = capsys.readouterr().out
    assert "done-sft@1" in shown
    assert "1 MiB - 3 MiB" in shown


def test_samples(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert triptych(monkeypatch, "runs", "samples", "done", "--runs", str(runs)) == 2
    assert "done: no stage has sampled yet" in capsys.readouterr().err
    folder = runs / "done" / "stages" / "ppo" / "rollouts"
    folder.mkdir()
    rows = [
        {"group": group, "prompt": f"user\nAsk {group}?\nassistant\n", "response": text, "score": score}
        | {"finish_reason": "stop", "versions": [0], "response_ids": [7]}
        for group, text, score in ((0, "[bold]meek", 0.25), (1, "loud", float("nan")), (1, "louder", 1.5))
    ]
    pq.write_table(pa.Table.from_pylist(rows), folder / "step-00000001.parquet")
    assert triptych(monkeypatch, "runs", "samples", "done", "--runs", str(runs), "--groups", "1") == 0
    shown = capsys.readouterr().out
    assert "done, ppo, step 1: 2 prompts, 1 of them with equal scores" in shown
    assert "best, mean 0.25: Ask 0?" in shown
    assert "[bold]meek" in shown
    assert triptych(monkeypatch, "runs", "samples", "done", "--runs", str(runs), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [answer["score"] for answer in found["groups"][1]["answers"]] == [1.5, None]
    samples = runs / "done" / "stages" / "ppo" / "samples"
    samples.mkdir(exist_ok=True)
    (samples / "before.sums.jsonl").write_text(json.dumps({"prompt": "6 * 7?", "response": "42", "reward": 1.0}))
    words = ("runs", "samples", "done", "--runs", str(runs), "--heldout", "sums", "--step", "0")
    assert triptych(monkeypatch, *words) == 0
    assert "done, ppo, sums, before: 1 prompts" in capsys.readouterr().out
    assert triptych(monkeypatch, *words, "--json") == 0
    assert json.loads(capsys.readouterr().out)["evaluation"] == "before"


def test_report(runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert triptych(monkeypatch, "runs", "report", "done", "--runs", str(runs)) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == runs / "done" / "report.html"
    page = path.read_text()
    assert "<svg" in page
    assert "<td>tokens a second</td><td>300</td><td></td><td>200</td><td>1.50</td>" in page


@pytest.mark.parametrize("name", ["dnoe", "../done", "artifacts"])
def test_wrong_names(
    name: str, runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert triptych(monkeypatch, "runs", "show", name, "--runs", str(runs)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    if name == "dnoe":
        assert "there is done" in printed.err


def test_the_rule_that_ended_a_stage_is_shown(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    why = "the held-out reward had no new best in 3 evaluations"
    stopped = {"rule": "heldout", "step": 12, "why": why, "numbers": {}}
    summary = {"kind": "rl", "metrics": {}, "registered": "done-ppo@1", "stopped": stopped, "best_step": 9}
    (runs / "done" / "stages" / "ppo" / "summary.json").write_text(json.dumps(summary))
    assert triptych(monkeypatch, "runs", "show", "done", "--json", "--runs", str(runs)) == 0
    assert json.loads(capsys.readouterr().out)["stages"]["ppo"]["stopped"] == stopped
    sentence = f"ended at step 12 by train.stopping.heldout: {why}; the weights of step 9 are kept"
    assert triptych(monkeypatch, "runs", "show", "done", "--runs", str(runs)) == 0
    assert f"ppo {sentence}" in capsys.readouterr().out
    assert triptych(monkeypatch, "runs", "report", "done", "--runs", str(runs)) == 0
    assert sentence in Path(capsys.readouterr().out.strip()).read_text()
