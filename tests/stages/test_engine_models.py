"""Teachers that are models of their own: what they must share with the base, before anything starts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.models.base import resolve_base
from triptych.plan.placement import requests
from triptych.recipe import Recipe
from triptych.rollout.leases import shares_of
from triptych.stages.engine_models import check_engine_models


def recipe(base: Path, teacher: str | Path, **engines: Any) -> Recipe:
    stage = {
        "kind": "rl",
        "policy": "sft@1",
        "algorithm": {"name": "opd", "teacher": {"base": str(teacher), "engines": engines}},
        "rewards": [{"stage": "reward@1"}],
        "data": {"train": {"path": "prompts.jsonl"}},
        "train": {"steps": 1},
    }
    return Recipe.model_validate({"name": "tiny", "model": {"base": str(base)}, "stages": {"rl": stage}})


def check(base: Path, teacher: str | Path) -> None:
    check_engine_models(recipe(base, teacher), ["rl"], resolve_base)


def change(folder: Path, file: str, **values: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_teacher_of_the_same_tokens_is_accepted(tiny_model_dir: Path, tiny_model_copy: Path) -> None:
    check(tiny_model_dir, tiny_model_copy)


def test_a_teacher_that_is_not_there_is_named_by_its_own_field(tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match=r"^stages\.rl\.algorithm\.teacher\.base: no folder"):
        check(tiny_model_dir, "/nowhere")


def test_the_first_token_that_differs_is_named(tiny_model_dir: Path, tiny_model_copy: Path) -> None:
    path = tiny_model_copy / "tokenizer.json"
    words = json.loads(path.read_text())
    token = next(token for token, number in words["model"]["vocab"].items() if number == 100)
    words["model"]["vocab"]["another"] = words["model"]["vocab"].pop(token)
    words["model"]["merges"] = []
    path.write_text(json.dumps(words))
    with pytest.raises(
        UserError, match=r"another vocabulary: id 100 is 'another', and .* in the base; allowed: a teacher"
    ):
        check(tiny_model_dir, tiny_model_copy)


def test_another_end_token_is_refused(tiny_model_dir: Path, tiny_model_copy: Path) -> None:
    words = json.loads((tiny_model_copy / "tokenizer.json").read_text())
    other = next(token for token, number in words["model"]["vocab"].items() if number == 100)
    own = json.loads((tiny_model_copy / "tokenizer_config.json").read_text())["eos_token"]
    change(tiny_model_copy, "tokenizer_config.json", eos_token=other)
    said = rf"teacher\.base: .* ends answers by {re.escape(repr(other))}, and .* by {re.escape(repr(own))}; allowed: a"
    with pytest.raises(UserError, match=said):
        check(tiny_model_dir, tiny_model_copy)


def test_a_context_that_is_too_short_is_refused(tiny_model_dir: Path, tiny_model_copy: Path) -> None:
    change(tiny_model_copy, "config.json", max_position_embeddings=128)
    with pytest.raises(
        UserError, match=r"takes 128 tokens, and rollout.max_prompt_tokens .* is 304; allowed: up to 127"
    ):
        check(tiny_model_dir, tiny_model_copy)


def test_fewer_rows_than_the_base_may_draw_are_refused(tiny_model_dir: Path, tiny_model_copy: Path) -> None:
    vocab = json.loads((tiny_model_dir / "config.json").read_text())["vocab_size"]
    change(tiny_model_copy, "config.json", vocab_size=vocab - 1)
    with pytest.raises(UserError, match=rf"gives {vocab - 1} tokens a probability, .* may draw {vocab}"):
        check(tiny_model_dir, tiny_model_copy)


def test_its_engines_ask_for_a_place_of_their_own(tiny_model_dir: Path) -> None:
    stage = recipe(tiny_model_dir, "other", engines=3, cpus=1.5).stages["rl"]
    asked = {one.role: (one.count, one.cpus, one.field("cpus")) for one in requests("rl", stage)}
    assert asked["teacher engine"] == (3, 1.5, "stages.rl.algorithm.teacher.engines.cpus")


def test_each_engine_judges_a_share() -> None:
    assert shares_of([5, 9, 7], 2) == [[1, 0], [2]]
    assert shares_of([5], 2) == [[0], []]
