"""A real run: an evaluation beside training, a gate that stops the graph, and the same command that goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from triptych.registry import Registry

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
WORDS = ("warm", "dull", "funny", "flat", "lovely", "slow", "great", "long")
BATCH = {"rows": 8, "micro_tokens": 512, "max_length": 128}


def recipe_file(model: Path, folder: Path) -> Path:
    """SFT, compared with the base on chats and on questions, and an SFT stage that waits for that."""
    chats = [{"prompt": f"Film {i}?", "response": f"The film is {WORDS[i % 8]}."} for i in range(32)]
    asked = [
        {"prompt": f"Film {i}?", "choices": [f"The film is {WORDS[j % 8]}." for j in (i, i + 1)], "answer": i % 2}
        for i in range(8)
    ]
    for name, rows in (("chats", chats), ("heldout", chats[:12]), ("questions", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"steps": 30, "optimizer": {"lr": 0.005}, "batch": BATCH}
    heldout = {"path": str(folder / "heldout.jsonl")}
    sft = {"kind": "sft", "data": {"train": {"path": str(folder / "chats.jsonl")}, "heldout": heldout}, "train": train}
    recipe = {
        "name": "judged",
        "model": {"base": str(model), "dtype": "float32"},
        "storage": {"runs": str(folder / "runs")},
        "stages": {
            "sft": sft,
            "compare": {
                "kind": "evaluation",
                "models": ["base", "sft"],
                "sets": {
                    "chats": {"data": heldout, "measure": {"name": "loss"}},
                    "questions": {
                        "data": {"path": str(folder / "questions.jsonl")},
                        "measure": {"name": "multiple_choice"},
                    },
                },
                "gate": [
                    {"set": "chats", "model": "sft", "better_than": "base"},
                    {"set": "questions", "model": "sft", "at_least": 0.99},
                ],
                "compute": {"batch": {"max_length": 128}},
            },
            "after": sft | {"train": train | {"steps": 1}, "needs": ["compare"]},
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def run(recipe: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    words = [TRIPTYCH, "run", str(recipe), "--cpus", "1", "--json", *more]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=500)


@pytest.mark.timeout(1000)
def test_a_gate_stops_the_graph_until_it_is_passed(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = recipe_file(tiny_model_dir, tmp_path)
    stopped = run(recipe)
    assert stopped.returncode == 1, stopped.stderr
    assert "stage compare: gate.1: accuracy of sft on questions is 0." in stopped.stderr
    assert "asked: at least 0.99: no further stage starts" in stopped.stderr
    assert "gate.0" not in stopped.stderr.rsplit("stage compare: ", 1)[-1]
    stages = tmp_path / "runs/judged/stages"
    assert not (stages / "after/state.json").exists(), "it was never begun"
    assert not (stages / "compare/summary.json").exists()
    beside = json.loads((stages / "compare/evaluations/comparison.json").read_text())
    own = beside["sets"]["chats"]["figures"]["loss"]["models"]["sft"]
    assert own["difference"]["high"] < 0, "training lowered the loss"
    trained = json.loads((stages / "sft/summary.json").read_text())["metrics"]["heldout_loss"]
    assert own["value"] == pytest.approx(trained, rel=1e-5), "evaluation sees the tokens that training sees"

    before = {path: path.stat().st_mtime_ns for path in (stages / "compare/scores").rglob("manifest.json")}
    assert len(before) == 4
    passed = run(recipe, "--set", "stages.compare.gate.1.at_least=0")
    assert passed.returncode == 0, passed.stderr
    summaries: dict[str, Any] = json.loads(passed.stdout)
    assert set(summaries) == {"sft", "compare", "after"}
    assert summaries["compare"]["comparison"] == beside
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is measured twice"
    version = Registry(f"sqlite:///{tmp_path}/runs/registry.db", str(tmp_path / "runs/artifacts")).get(
        "judged-compare@1"
    )
    assert (version.kind, list(version.lineage["parents"])) == ("evaluation", ["judged-sft@1"])
    rows = pq.read_table(Path(version.url) / "chats.parquet").to_pylist()
    assert [(row["model"], row["row"]) for row in rows] == [(m, i) for m in ("base", "sft") for i in range(12)]
