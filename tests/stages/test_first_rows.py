"""A plan predicts of a stage's first rows what the run predicts of its data."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triptych.plan import duration, estimate, machine, place
from triptych.recipe import load_recipe
from triptych.recipe.work_shape import MicroBatch
from triptych.stages import preflight
from triptych.stages.context import StageContext
from triptych.stages.first_rows import CUT_FILL
from triptych.stages.preflight import check_plan
from triptych.stages.supervised.training import prepare

MakeContext = Callable[[dict[str, Any]], StageContext[Any]]

KINDS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "sft": ([{"prompt": f"Film {i}?", "response": "warm " * (i % 7 + 1)} for i in range(30)], {}),
    "reward": ([{"prompt": f"Film {i}?", "chosen": "warm " * (i % 7 + 1), "rejected": "dull"} for i in range(30)], {}),
    "dpo": ([{"prompt": f"Film {i}?", "chosen": "warm " * (i % 7 + 1), "rejected": "dull"} for i in range(30)], {}),
    "kto": ([{"prompt": f"{i}?", "completion": "warm " * (i % 7 + 1), "label": i % 2 == 0} for i in range(30)], {}),
    "rrhf": (
        [
            {"prompt": f"{i}?", "answers": ["a", "warm", "is"][: 2 + i % 2], "ranks": [1, 2, 3][: 2 + i % 2]}
            for i in range(30)
        ],
        {},
    ),
    "classification": (
        [{"text": "warm " * (i % 9 + 1), "label": "ab"[i % 2]} for i in range(30)],
        {"labels": ["a", "b"]},
    ),
    "token_classification": (
        [{"tokens": ["warm"] * (i % 9 + 1), "tags": ["A"] * (i % 9 + 1)} for i in range(30)],
        {"labels": ["A", "B"]},
    ),
    "question_answering": (
        [
            {
                "question": "What is it?",
                "context": "It is " + "very " * (i % 9) + "warm.",
                "answers": {"text": ["It"], "answer_start": [0]},
            }
            for i in range(30)
        ],
        {},
    ),
}
ENDS = ((0.1, "dull"), (0.5, "fine"), (0.9, "warm"))
SHORT = [{"prompt": f"{i}?", "response": "warm"} for i in range(64)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_plan_finds_the_micro_batch_that_a_run_finds(kind: str, make_context: MakeContext, tmp_path: Path) -> None:
    rows, fields = KINDS[kind]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = {"steps": 5, "batch": {"rows": 4, "micro_tokens": 256, "max_length": 128}}
    ctx = make_context({"kind": kind, "data": {"train": {"path": str(path)}}, "train": train, **fields})
    told: list[MicroBatch] = []
    prepare(replace(ctx, on_data=lambda _, batch: told.append(batch)))
    planned = check_plan(ctx.recipe, ["only"], pytest.fail).largest_batches(ctx.recipe)
    assert planned == {"only": told[0]}
    assert 1 < told[0].tokens <= 256


def test_rated_answers_and_mixtures_are_read_as_a_run_reads_them(make_context: MakeContext, tmp_path: Path) -> None:
    rated = [{"prompt": f"Film {i}?", "response": f"It is {w}.", "score": s} for i in range(9) for s, w in ENDS]
    long = [{"prompt": f"Film {i}?", "chosen": "warm " * 12, "rejected": "dull " * 12} for i in range(50)]
    for name, rows in (("rated", rated), ("long", long)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parts = [
        {"path": str(tmp_path / "rated.jsonl"), "weight": 2},
        {"path": str(tmp_path / "long.jsonl"), "weight": 0.02},
    ]
    train = {"steps": 5, "batch": {"rows": 4, "micro_tokens": 512, "max_length": 128}}
    ctx = make_context({"kind": "reward", "data": {"train": {"mix": parts}}, "train": train})
    told: list[MicroBatch] = []
    prepare(replace(ctx, on_data=lambda _, batch: told.append(batch)))
    planned = check_plan(ctx.recipe, ["only"], pytest.fail).largest_batches(ctx.recipe)
    assert planned == {"only": told[0]}
    (tmp_path / "rated.jsonl").write_text(json.dumps(rated[0]) + "\n")
    assert check_plan(ctx.recipe, ["only"], pytest.fail).largest_batches(ctx.recipe) == {}


def test_a_step_of_more_rows_than_a_plan_reads_is_read_whole(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "PLANNED", 8)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SHORT))
    train = {"steps": 2, "batch": {"rows": 32, "micro_tokens": 4096, "max_length": 128}}
    recipe = make_context({"kind": "sft", "data": {"train": {"path": str(path)}}, "train": train}).recipe
    found = check_plan(recipe, ["only"], pytest.fail)
    assert len(found.rows["only"]) == 32
    batch = found.largest_batches(recipe)["only"]
    assert batch.fill == CUT_FILL


def test_prompts_of_rl_are_read_too(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    found = check_plan(recipe, recipe.stages, pytest.fail).largest_batches(recipe)
    assert set(found) == {"sft", "reward", "ppo"}
    sampling = recipe.trained["ppo"].shape().sampling
    assert sampling is not None
    usual = found["ppo"].usual
    assert usual is not None
    assert 1 < usual <= found["ppo"].length - sampling.max_new_tokens < sampling.max_prompt_tokens


def test_short_rows_need_less_memory_and_time_than_the_recipe_allows(make_context: MakeContext, tmp_path: Path) -> None:
    path = tmp_path / "short.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in SHORT))
    train = {"epochs": 1, "batch": {"rows": 8, "micro_tokens": 4096, "max_length": 512}}
    recipe = make_context({"kind": "sft", "data": {"train": {"path": str(path)}}, "train": train}).recipe
    batches = check_plan(recipe, ["only"], pytest.fail).largest_batches(recipe)
    placement = place(recipe, machine("8xh100-80"))
    found = [estimate(recipe, machine="8xh100-80", batches=given) for given in ({}, batches)]
    allowed, read = (one.stages["only"].roles["policy"].parts["activations"] for one in found)
    assert read.high < allowed.low / 3
    seconds = [duration(recipe, one, placement, {"only": len(SHORT)}, None).seconds for one in found]
    assert seconds[1] < seconds[0] / 3


def test_without_rows_here_the_recipe_alone_is_planned(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["stages.sft.data.train.path=s3://bucket/rows.jsonl"])
    assert set(check_plan(recipe, ["sft", "reward"], pytest.fail).largest_batches(recipe)) == {"reward"}
