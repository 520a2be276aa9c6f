"""Evaluation stages: what cannot be measured, generated or judged is refused with its field and what is allowed."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from triptych.recipe import Evaluation, Recipe, RecipeError, load_recipe, stage_order

SFT = {"kind": "sft", "data": {"train": {"path": "chats.jsonl"}}, "train": {"steps": 1}}
CHATS = {"data": {"path": "chats.jsonl"}, "measure": {"name": "loss"}}
CHOICES = {"data": {"path": "choices.jsonl"}, "measure": {"name": "multiple_choice"}}
TEXTS = {"data": {"path": "texts.jsonl"}, "measure": {"name": "classification"}}


def load(folder: Path, stages: dict[str, Any], **stage: Any) -> Recipe:
    """A recipe with these stages, and `compare`: base and sft on chats, where `stage` does not say otherwise."""
    compare = {"kind": "evaluation", "models": ["base", "sft"], "sets": {"chats": CHATS}} | stage
    path = folder / "recipe.yaml"
    data = {"name": "t", "model": {"base": "any"}, "stages": {"sft": SFT, **stages, "compare": compare}}
    path.write_text(yaml.safe_dump(data))
    return load_recipe(path)


def refused(folder: Path, stages: dict[str, Any], **stage: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load(folder, stages, **stage)
    return str(caught.value).removeprefix(f"{folder / 'recipe.yaml'}:").partition(": stages.compare.")[2]


def test_it_waits_for_its_models_and_others_may_wait_for_it(tmp_path: Path) -> None:
    recipe = load(tmp_path, {"after": SFT | {"needs": ["compare"]}}, models=["x@3", "sft"])
    assert stage_order(recipe) == ["sft", "compare", "after"]
    compare = recipe.stages["compare"]
    assert isinstance(compare, Evaluation)
    assert compare.parents() == ("sft",)
    assert compare.output == "evaluation"


def test_a_set_may_be_the_data_set_of_a_stage(tmp_path: Path) -> None:
    chats = {"data": {"stage": "sft"}, "measure": {"name": "loss"}}
    assert "sets.chats.data.stage: `sft` is a stage of kind sft, whose output is a policy" in refused(
        tmp_path, {}, sets={"chats": chats}
    )


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ({"models": ["base", "stf"]}, "models.1: no stage `stf`; did you mean `sft`?; allowed: sft"),
        ({"models": ["base", "base"]}, "models.1: `base` is given twice; allowed: each model once"),
        (
            {"models": ["compare", "sft"]},
            "models.0: `compare` is a stage of kind evaluation, whose output is an evaluation",
        ),
        ({"sets": {}}, "sets: "),
        (
            {"sets": {"chats": {**CHATS, "measure": {"name": "lss"}}}},
            'sets.chats.measure.name: cannot be "lss"; did you mean `loss`?',
        ),
        (
            {"sets": {"texts": TEXTS}, "models": ["base"]},
            "models.0: `base` has no head of classes; allowed: classifiers",
        ),
        (
            {"sets": {"a": TEXTS, "b": CHATS}},
            "sets.a.measure.name: classification measures classifiers, and other sets",
        ),
        (
            {"sets": {"chats": {"measure": {"name": "loss"}}}},
            "sets.chats: no `data`, and loss measures rows; give `data`",
        ),
        (
            {"sets": {"arc": {**CHATS, "measure": {"name": "lm_eval", "tasks": ["arc_easy"]}}}},
            "sets.arc: `data`, and the tasks of lm_eval bring their own rows; allowed: no `data`",
        ),
        ({"sets": {"arc": {"measure": {"name": "lm_eval", "tasks": []}}}}, "sets.arc.measure.tasks: "),
        (
            {"gate": [{"set": "chat", "model": "sft", "at_most": 1}]},
            "gate.0.set: `chat` is none of this stage; did you mean `chats`?; allowed: chats",
        ),
        (
            {"gate": [{"set": "chats", "model": "st", "at_most": 1}]},
            "gate.0.model: `st` is none of this stage; did you mean `sft`?; allowed: base, sft",
        ),
        (
            {"gate": [{"set": "chats", "model": "sft", "metric": "los", "at_most": 1}]},
            "gate.0.metric: `los` is none of this stage; did you mean `loss`?; allowed: loss, perplexity",
        ),
        (
            {"gate": [{"set": "chats", "model": "sft", "better_than": "sft"}]},
            "gate.0.better_than: `sft` is the model itself; allowed: another",
        ),
        (
            {"gate": [{"set": "chats", "model": "sft"}]},
            "gate.0: give exactly one of `at_least`, `at_most` and `better_than`",
        ),
        ({"gate": [{"set": "chats", "model": "sft", "at_most": 1, "by": 0.1}]}, "gate.0: `by` goes with `better_than`"),
        (
            {"compute": {"workers": {"strategy": "fsdp"}}},
            "compute.workers.strategy: fsdp, and each worker of an evaluation has a copy",
        ),
        (
            {"compute": {"workers": {"count": 2, "min_count": 1}}},
            "compute.workers.min_count: an evaluation is not elastic; allowed: no min_count",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, stage: dict[str, Any], told: str) -> None:
    assert told in refused(tmp_path, {}, **stage)


def test_a_head_that_names_no_class_of_a_text_is_refused(tmp_path: Path) -> None:
    tags = {"kind": "token_classification", "labels": ["A", "B"], "data": SFT["data"], "train": {"steps": 1}}
    told = refused(tmp_path, {"tags": tags}, models=["tags"], sets={"texts": TEXTS})
    assert told.startswith("models.0: `tags` is of kind token_classification, and its head names no class of a text")


def test_a_stage_called_base_is_no_model_beside_the_base(tmp_path: Path) -> None:
    assert "models.0: `base` is the base model, and a stage's name" in refused(tmp_path, {"base": SFT})


SUMS = {"data": {"path": "sums.jsonl"}, "measure": {"name": "verifier"}}


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        (
            {"sets": {"sums": {**SUMS, "measure": {"name": "verifier", "match": "regex"}}}},
            "sets.sums.measure: `pattern` goes with `match: regex`: give both or neither",
        ),
        (
            {"sets": {"sums": {**SUMS, "measure": {"name": "verifier", "match": "regex", "pattern": "("}}}},
            "sets.sums.measure: pattern '(' is no regular expression",
        ),
        (
            {"sets": {"sums": SUMS}, "rollout": {"samples_per_prompt": 2}},
            "rollout: samples_per_prompt 2 with sampling.temperature 0, at which all answers to a prompt are the same",
        ),
        (
            {"sets": {"sums": SUMS}, "rollout": {"sampling": {"temperature": 0.001}}},
            "rollout.sampling.temperature: vLLM samples at no lower one than 0.01; allowed: 0, or from there to 2",
        ),
        (
            {"sets": {"films": {**SUMS, "measure": {"name": "judge", "reward": "sft"}}}},
            "sets.films.measure.reward: `sft` is a stage of kind sft, whose output is a policy; allowed: ",
        ),
        (
            {
                "sets": {"films": {**SUMS, "measure": {"name": "judge", "reward": "x@1"}}},
                "gate": [{"set": "films", "model": "base", "metric": "wins", "at_least": 0.5}],
            },
            "gate.0.metric: wins are against the first model, base; allowed: another model, with at_least",
        ),
        (
            {"sets": {"sums": SUMS}, "models": ["soft"]},
            "models.0: `soft`: prefix_tuning cannot be merged into the weights",
        ),
        (
            {"sets": {"sums": SUMS}, "models": ["thin"], "rollout": {"sync": "adapter"}},
            "rollout.sync: adapter, and engines run no bitfit beside the weights; allowed: auto, merged",
        ),
    ],
)
def test_what_engines_cannot_answer_is_refused(tmp_path: Path, stage: dict[str, Any], told: str) -> None:
    stages = {"soft": SFT | {"method": {"name": "prefix_tuning"}}, "thin": SFT | {"method": {"name": "bitfit"}}}
    assert told in refused(tmp_path, stages, **stage)


def test_engines_run_only_where_there_is_something_to_answer(tmp_path: Path) -> None:
    assert load(tmp_path, {}).stages["compare"].engines is None
    engines = load(tmp_path, {}, sets={"chats": CHATS, "sums": SUMS}).stages["compare"].engines
    assert engines is not None
    assert engines.engines == 2
