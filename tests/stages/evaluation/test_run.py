"""A real run: an evaluation beside training, a gate that stops the graph, and training that goes on from an adapter."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from tests.stages.evaluation.conftest import likeliest, register, register_whole
from triptych import storage
from triptych.data.end_tokens import end_tokens
from triptych.data.table import read_table
from triptych.errors import RunError
from triptych.models.base import load_causal_lm
from triptych.observe.log import read_metrics
from triptych.observe.progress import Progress
from triptych.observe.report.page import render
from triptych.observe.runs import read_run
from triptych.recipe import load_recipe
from triptych.registry import Registry
from triptych.stages.evaluation.answers import read_answers
from triptych.stages.models import tokenizer_of
from triptych.stages.run import run_recipe, stage_context

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.usefixtures("ray_cluster")]

WORDS = ("warm", "dull", "funny", "flat", "lovely", "slow", "great", "long")
BATCH = {"rows": 8, "micro_tokens": 512, "max_length": 128}


def recipe_file(model: Path, folder: Path) -> Path:
    """SFT, compared with the base on chats and on questions, and SFT that waits for that and goes on from the first."""
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
            "after": {
                "kind": "sft",
                "from": "sft",
                "needs": ["compare"],
                "data": {"train": heldout},
                "train": train | {"steps": 1, "batch": BATCH | {"rows": 12, "micro_tokens": 2048}},
            },
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.mark.timeout(590)
def test_a_gate_stops_the_graph_until_it_is_passed(tiny_model_dir: Path, tmp_path: Path) -> None:
    path, progress = recipe_file(tiny_model_dir, tmp_path), Progress.start()
    with pytest.raises(RunError) as stopped:
        run_recipe(load_recipe(path), progress)
    told = str(stopped.value)
    assert told.startswith("stage compare: gate.1: accuracy of sft on questions is 0.")
    assert "; asked: at least 0.99: no further stage starts; all figures are in " in told
    assert "gate.0" not in told
    stages = tmp_path / "runs/judged/stages"
    assert not (stages / "after/state.json").exists(), "it was never begun"
    assert not (stages / "compare/summary.json").exists()
    beside = json.loads((stages / "compare/evaluations/comparison.json").read_text())
    own = beside["sets"]["chats"]["figures"]["loss"]["models"]["sft"]
    assert own["difference"]["high"] < 0, "training lowered the loss"
    trained = json.loads((stages / "sft/summary.json").read_text())["metrics"]["heldout_loss"]
    assert own["value"] == pytest.approx(trained, rel=1e-5), "evaluation sees the tokens that training sees"
    assert "<th>base</th><th>sft</th></tr>" in (page := render(read_run(str(tmp_path / "runs/judged"))))
    assert "the difference from base on the same rows" in page

    before = {path: path.stat().st_mtime_ns for path in (stages / "compare/scores").rglob("manifest.json")}
    assert len(before) == 4
    lenient = load_recipe(path, ["stages.compare.gate.1.at_least=0"])
    summaries = run_recipe(lenient, progress)
    assert set(summaries) == {"sft", "compare", "after"}
    assert summaries["compare"]["comparison"] == beside
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing is measured twice"
    first = read_metrics(str(stages / "after"))[0]["loss"]
    assert first == pytest.approx(trained, abs=1e-5), "training goes on where it ended"
    registry = Registry(f"sqlite:///{tmp_path}/runs/registry.db", str(tmp_path / "runs/artifacts"))
    assert [one.ref for one in registry.ancestors("judged-after@1")] == ["judged-sft@1"]
    version = registry.get("judged-compare@1")
    assert (version.kind, list(version.lineage["parents"])) == ("evaluation", ["judged-sft@1"])
    rows = pq.read_table(Path(version.url) / "chats.parquet").to_pylist()
    assert [(row["model"], row["row"]) for row in rows] == [(m, i) for m in ("base", "sft") for i in range(12)]


@pytest.mark.exhaustive
@pytest.mark.timeout(590)
def test_engines_answer_as_each_model_does(tiny_model_dir: Path, tmp_path: Path) -> None:
    """The base, a LoRA and a whole model by the same engines: the likeliest tokens are those of transformers."""
    sums = [{"prompt": f"{n} + {n}?", "answer": 2 * n} for n in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    measures = {"sums": {"name": "verifier"}, "taste": {"name": "judge", "reward": "taste@1"}}
    sets = {name: {"data": {"path": str(tmp_path / "sums.jsonl")}, "measure": one} for name, one in measures.items()}
    rollout = {"engines": 1, "max_prompt_tokens": 96, "kv_cache_gb": 0.1, "sampling": {"max_new_tokens": 8}}
    models = ["whole@1", "tuned@1", "base"]
    recipe = {
        "name": "asked",
        "model": {"base": str(tiny_model_dir), "dtype": "float32"},
        "storage": {"runs": str(tmp_path / "runs")},
        "stages": {"compare": {"kind": "evaluation", "models": models, "sets": sets, "rollout": rollout}},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(path)
    ctx = stage_context(loaded, "compare", Progress.start())
    _, tuned = register(ctx, "tuned", tmp_path)
    register(ctx, "taste", tmp_path, "reward_model")
    whole = register_whole(ctx, "whole", tmp_path)
    summary = run_recipe(loaded, ctx.progress)["compare"]

    prompts = read_table(storage.join(ctx.folder, "data", "sums"))["prompt_ids"]
    ends = end_tokens(tiny_model_dir, tokenizer_of(ctx))
    with tuned.use("role"):
        own = {"tuned@1": [likeliest(tuned.lm, prompt, 8, ends) for prompt in prompts]}
    base = load_causal_lm(tiny_model_dir, torch.float32)
    own |= {"base": [likeliest(base, prompt, 8, ends) for prompt in prompts]}
    own |= {"whole@1": [likeliest(whole, prompt, 8, ends) for prompt in prompts]}
    for ref, answers in own.items():
        assert [ids for (ids,) in read_answers(ctx, "sums", ref)["answer_ids"]] == answers
    assert len({json.dumps(answers) for answers in own.values()}) == 3, "each model says something else"
    figures = summary["comparison"]["sets"]["taste"]["figures"]
    assert set(figures["score"]["models"]) == set(models)
    assert set(figures["wins"]["models"]) == {"tuned@1", "base"}
