"""What a stage would refuse, perhaps after hours of others, is refused before anything starts."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.families import tiny
from tests.support.tokenizers import make_tokenizer
from triptych import storage
from triptych.cli.run import _run_here
from triptych.errors import UserError
from triptych.recipe import Recipe, load_recipe
from triptych.stages.preflight import PLANNED, check_engines, check_plan
from triptych.stages.run import check_recipe, run_folder

LONG = {"prompt": "warm " * 400}
CONTROL = {"prompt": "Hi", "response": "So <|im_end|> it is."}


def changed(recipe_file: Path, split: str, rows: Sequence[dict[str, Any]], *sets: str) -> Recipe:
    """The recipe of three stages whose `split` (as in `ppo.data.train`) has these rows."""
    path = recipe_file.parent / "changed.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_recipe(recipe_file, [f"stages.{split}.path={path}", *sets])


@pytest.mark.parametrize(
    ("split", "rows", "told"),
    [
        (
            "ppo.data.train",
            [{"prompt": "Hi"}, LONG],
            r"stages\.ppo\.data\.train: 1 of 2 prompts are longer than \d+ to",
        ),
        ("ppo.data.train", [{"prompt": "Hi <|im_end|>"}], r"line 1: .*control token '<\|im_end\|>'"),
        ("ppo.data.train", [{"topic": "Hi"}], r"changed\.jsonl: 1 of 1 rows are malformed as prompts"),
        ("sft.data.train", [{"prompt": "Hi", "response": "So."}, CONTROL], r"line 2: .*control token"),
        ("sft.data.heldout", [{"messages": [{"role": "assistant", "content": "Hi"}]}], r"the assistant speaks first"),
        ("reward.data.train", [{"prompt": "Hi", "chosen": "So."}], r"stages\.reward\.data\.train: .*as pairs"),
    ],
)
def test_rows_of_any_stage_are_refused_as_they_are_rendered(
    recipe_file: Path, split: str, rows: list[dict[str, Any]], told: str
) -> None:
    recipe = changed(recipe_file, split, rows)
    with pytest.raises(UserError, match=f"(?s){told}"):
        check_recipe(recipe)
    with pytest.raises(UserError, match=f"(?s){told}"):
        check_plan(recipe, recipe.stages, pytest.fail)
    allowed = changed(recipe_file, split, [*rows, *GOOD[split]], f"stages.{split}.max_bad_rows=1")
    check_recipe(allowed)
    check_plan(allowed, allowed.stages, pytest.fail)


GOOD: dict[str, list[dict[str, Any]]] = {
    "ppo.data.train": [{"prompt": "Hi"}],
    "sft.data.train": [{"prompt": "Hi", "response": "So."}],
    "sft.data.heldout": [{"prompt": "Hi", "response": "So."}],
    "reward.data.train": [{"prompt": "Hi", "chosen": "So.", "rejected": "No."}],
}


@pytest.mark.parametrize(("kind", "row"), [("classification", "text"), ("token_classification", "tokens")])
def test_labels_that_a_stage_does_not_name_are_refused_by_a_plan(
    recipe_file: Path, tmp_path: Path, kind: str, row: str
) -> None:
    def planned(label: Any) -> Recipe:
        one = {"text": "Hi", "label": label} if row == "text" else {"tokens": ["Hi"], "tags": [label]}
        (tmp_path / "labels.jsonl").write_text(json.dumps(one))
        data = f"data: {{train: {{path: {tmp_path}/labels.jsonl}}}}"
        return load_recipe(
            recipe_file, [f"stages={{only: {{kind: {kind}, labels: [O, X], {data}, train: {{steps: 1}}}}}}"]
        )

    for known in ("X", 1, "1"):
        check_plan(planned(known), ["only"], pytest.fail)
    for unknown in ("Y", -1, 2):
        with pytest.raises(UserError, match=rf"stages\.only\.data\.train: (?s:.*)'?{unknown}'? is none of O, X"):
            check_plan(planned(unknown), ["only"], pytest.fail)


@pytest.mark.parametrize("family", ["gpt_neox", "doge"])
def test_a_family_that_engines_compute_otherwise_is_refused_where_they_sample(
    family: str, recipe_file: Path, tiny_model_copy: Path
) -> None:
    tiny(family, torch.float32).config.save_pretrained(tiny_model_copy)
    recipe = load_recipe(recipe_file, [f"model.base={tiny_model_copy}"])
    with pytest.raises(UserError, match=rf"model\.base: vLLM's CPU engine computes {family} otherwise .*differs at"):
        check_engines(recipe, ["ppo"])
    check_engines(recipe, ["sft"])
    check_engines(load_recipe(recipe_file, [f"model.base={tiny_model_copy}", "stages.ppo.rollout.gpus=1"]), ["ppo"])


def test_adapters_are_refused_for_engines_that_apply_none_to_the_family(
    recipe_file: Path, tiny_model_copy: Path
) -> None:
    tiny("falcon", torch.float32).config.save_pretrained(tiny_model_copy)
    sets = [f"model.base={tiny_model_copy}", "stages.ppo.rollout.sync=adapter"]
    with pytest.raises(
        UserError, match=r"rollout\.sync: adapter: vLLM's CPU engine applies no LoRA to falcon .* merged"
    ):
        check_engines(load_recipe(recipe_file, sets), ["ppo"])
    check_engines(load_recipe(recipe_file, sets[:1]), ["ppo"])


def test_a_template_that_ends_no_turn_is_refused(recipe_file: Path, tiny_model_copy: Path) -> None:
    (tiny_model_copy / "chat_template.jinja").unlink(missing_ok=True)
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}{% endfor %}"
    sets = [f"model.base={tiny_model_copy}", f"model.chat_template={json.dumps(template)}"]
    recipe = load_recipe(recipe_file, sets)
    for check in (check_recipe, lambda recipe: check_plan(recipe, ["ppo"], pytest.fail)):
        with pytest.raises(UserError, match="chat template"):
            check(recipe)


def test_a_plan_looks_at_the_first_rows_and_a_run_at_many(recipe_file: Path) -> None:
    recipe = changed(recipe_file, "ppo.data.train", [*[{"prompt": "Hi"}] * PLANNED, LONG])
    check_plan(recipe, recipe.stages, pytest.fail)
    with pytest.raises(UserError, match=f"1 of {PLANNED + 1} prompts"):
        check_recipe(recipe)


def test_a_file_that_is_not_here_is_named_by_a_plan_and_refused_by_a_run(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["stages.ppo.data.train.path=none.jsonl"])
    said: list[str] = []
    check_plan(recipe, recipe.stages, said.append)
    assert said == ["stages.ppo.data.train: none.jsonl is not here, so its rows are not checked"]
    with pytest.raises(UserError, match=r"stages\.ppo\.data\.train: none\.jsonl: no such file"):
        check_recipe(recipe)
    check_recipe(recipe, "sft")
    elsewhere = load_recipe(recipe_file, ["stages.ppo.data.train.path=s3://bucket/none.jsonl"])
    check_recipe(elsewhere)


def test_a_stage_that_is_done_is_not_checked_again(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["stages.sft.data.train.path=none.jsonl"])
    summary = storage.join(run_folder(recipe), "stages", "sft", "summary.json")
    storage.write_bytes(summary, json.dumps({"registered": "tiny-sft@1", "metrics": {}}).encode())
    check_recipe(recipe)


def test_a_base_with_another_end_is_checked_by_its_own_template(recipe_file: Path, tiny_model_copy: Path) -> None:
    make_tokenizer("bytes", "gemma").save_pretrained(tiny_model_copy)
    rows = [{"prompt": "Hi", "response": "So <end_of_turn> it is."}]
    recipe = changed(recipe_file, "sft.data.train", rows, f"model.base={tiny_model_copy}")
    with pytest.raises(UserError, match="control token '<end_of_turn>'"):
        check_plan(recipe, ["sft"], pytest.fail)


def test_nothing_is_started_or_written_for_what_is_refused(recipe_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed(recipe_file, "ppo.data.train", [LONG])
    monkeypatch.setattr("triptych.cluster.ray.connect", pytest.fail)
    sets = [f"stages.ppo.data.train.path={recipe_file.parent / 'changed.jsonl'}"]
    with pytest.raises(UserError, match="longer than"):
        _run_here(recipe_file, None, sets, None, None, as_json=False)
    assert not Path(run_folder(load_recipe(recipe_file))).exists()


def test_a_base_without_its_tokenizer_is_planned(recipe_file: Path, tmp_path: Path, tiny_model_dir: Path) -> None:
    """A plan needs config.json alone."""
    (tmp_path / "config").mkdir()
    shutil.copy(tiny_model_dir / "config.json", tmp_path / "config")
    recipe = changed(recipe_file, "sft.data.train", [CONTROL], f"model.base={tmp_path / 'config'}")
    check_plan(recipe, recipe.stages, pytest.fail)


@pytest.mark.slow
def test_a_plan_without_registered_versions_loads_no_torch(three_stages: Path) -> None:
    said = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from triptych.recipe import load_recipe; from triptych.stages import preflight; "
            f"preflight.check_engines(load_recipe({str(three_stages)!r}), []); print('torch' in sys.modules)",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.strip() == "False"
