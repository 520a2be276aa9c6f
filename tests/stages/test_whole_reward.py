"""Reward models that are whole models: trained, from a whole SFT too, written for transformers, and read again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from tests.support.one_process import Silent, stopped_at_step
from tests.support.preferences import LORA, recipe, stage
from triptych.data.table import read_table
from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.models.adapter import load_adapter
from triptych.models.base import load_causal_lm
from triptych.models.weights import read_weights
from triptych.models.whole_reward import scoring_head
from triptych.observe.log import read_metrics
from triptych.recipe import Full, Recipe, RecipeError
from triptych.recipe.method import Freeze
from triptych.registry import Registry, registry_url
from triptych.stages.preflight import check_plan
from triptych.stages.run import check_recipe, run_folder, run_recipe
from triptych.stages.supervised.reward import batch_of_pairs
from triptych.stages.versions import with_versions
from triptych.train.tasks.forward import sequence_scores

pytestmark = pytest.mark.usefixtures("one_process")

METHODS: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "freeze": {"name": "freeze", "layers": 1},
}


def reward(folder: Path, method: dict[str, Any], **fields: Any) -> dict[str, Any]:
    made = stage(folder, "reward", method=method, **fields)
    made["train"]["optimizer"]["lr"] = 1e-3
    return made


def artifact(loaded: Recipe) -> Path:
    return Path(run_folder(loaded)) / "stages/reward/artifact"


def training_pairs(loaded: Recipe) -> dict[str, torch.Tensor]:
    table = read_table(f"{run_folder(loaded)}/stages/reward/data/train")
    rows = [dict(zip(table, values, strict=True)) for values in zip(*table.values(), strict=True)]
    return batch_of_pairs(rows, pad=0)


def scores(folder: Path, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Normalised scores of a whole reward model."""
    model = RoleModel(load_causal_lm(folder, torch.float32))
    model.add("reward", Full(), trainable=False, head=scoring_head(folder))
    with torch.no_grad(), model.eval().use("reward"):
        return sequence_scores(model, batch)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_it_learns_and_transformers_gives_its_scores(tmp_path: Path, tiny_model_dir: Path, name: str) -> None:
    loaded = recipe(tmp_path, tiny_model_dir, reward=reward(tmp_path, METHODS[name], centering=0.01))
    check_recipe(loaded)
    check_plan(loaded, loaded.stages, pytest.fail)
    found = run_recipe(loaded, Silent())["reward"]
    steps = read_metrics(f"{run_folder(loaded)}/stages/reward")
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert found["metrics"]["heldout_accuracy"] > 0.5

    folder, batch = artifact(loaded), training_pairs(loaded)
    own = scores(folder, batch)
    assert own.mean().item() == pytest.approx(0, abs=1e-4)
    assert own.std(correction=0).item() == pytest.approx(1, abs=1e-4)

    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert classifier.num_labels == 1
    with torch.no_grad():
        plain = classifier(input_ids=batch["ids"], attention_mask=batch["mask"].long()).logits[:, 0]
    constants = json.loads((folder / "triptych.json").read_text())["normalization"]
    torch.testing.assert_close((plain - constants["mean"]) / constants["std"], own, rtol=1e-5, atol=1e-5)

    version = Registry(registry_url(loaded)).get(found["registered"])
    assert version.kind == "reward_model"
    assert version.lineage["stage_kind"] == "reward"


@pytest.mark.slow
def test_its_scores_are_those_before_it_was_saved(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the learner's own model in the midst of the run, by the same constants, bias of the head included."""
    trained: dict[str, Any] = {}
    from triptych.stages.supervised import reward as module

    def keeping(ctx: Any, model: RoleModel, weights: Any, normalization: Any, metrics: Any) -> None:
        with torch.no_grad(), model.eval().use("reward"):
            trained["scores"] = sequence_scores(model, training_pairs(loaded))
        trained["normalization"] = normalization
        commit(ctx, model, weights, normalization, metrics)

    commit = module._commit
    monkeypatch.setattr(module, "_commit", keeping)
    loaded = recipe(tmp_path, tiny_model_dir, reward=reward(tmp_path, METHODS["full"], centering=0.5))
    run_recipe(loaded, Silent())
    constants = trained["normalization"]
    before = (trained["scores"] - constants.mean) / constants.std
    torch.testing.assert_close(scores(artifact(loaded), training_pairs(loaded)), before, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_padding_of_the_tokenizer_beside_it_is_what_transformers_looks_for(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    loaded = recipe(tmp_path, tiny_model_dir, reward=reward(tmp_path, METHODS["freeze"]))
    run_recipe(loaded, Silent())
    folder = artifact(loaded)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id
    assert config["architectures"] == ["LlamaForSequenceClassification"]


@pytest.mark.slow
def test_an_end_token_that_the_base_pads_with_is_scored_and_named_by_no_padding(
    tmp_path: Path, tiny_model_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else transformers would skip it, and score the token before it."""
    end = AutoTokenizer.from_pretrained(tiny_model_copy)
    monkeypatch.setattr("triptych.models.base._padding_token", lambda tokenizer: tokenizer.eos_token)
    for name, changes in {
        "config.json": {"pad_token_id": end.eos_token_id},
        "tokenizer_config.json": {"pad_token": end.eos_token},
    }.items():
        file = tiny_model_copy / name
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    loaded = recipe(tmp_path, tiny_model_copy, reward=reward(tmp_path, METHODS["full"]))
    run_recipe(loaded, Silent())
    folder, batch = artifact(loaded), training_pairs(loaded)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    constants = json.loads((folder / "triptych.json").read_text())["normalization"]
    rows = [ids[mask.bool()] for ids, mask in zip(batch["ids"], batch["mask"], strict=True)]
    assert {int(row[-1]) for row in rows} == {end.eos_token_id}
    with torch.no_grad():
        plain = torch.cat([classifier(input_ids=row[None]).logits[:, 0] for row in rows])
    own = scores(folder, batch)
    torch.testing.assert_close((plain - constants["mean"]) / constants["std"], own, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="no padding token"):
        classifier(input_ids=batch["ids"], attention_mask=batch["mask"].long())


@pytest.mark.slow
def test_a_resumed_stage_ends_where_an_undisturbed_one_does(tmp_path: Path, tiny_model_dir: Path) -> None:
    def make(name: str) -> Recipe:
        return recipe(tmp_path, tiny_model_dir, name, reward=reward(tmp_path, METHODS["full"]))

    undisturbed, stopped = make("undisturbed"), make("stopped")
    run_recipe(undisturbed, Silent())
    with stopped_at_step(4):
        run_recipe(stopped, Silent())
    assert not artifact(stopped).exists()
    run_recipe(stopped, Silent())
    own, expected = (scores(artifact(one), training_pairs(one)) for one in (stopped, undisturbed))
    torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)


def test_an_ensemble_of_whole_models_is_refused(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(RecipeError, match=r"stages\.reward\.members: 2, and full makes a whole model .*allowed: 1"):
        recipe(tmp_path, tiny_model_dir, reward=reward(tmp_path, METHODS["full"], members=2))


def test_no_training_goes_on_from_it(tmp_path: Path, tiny_model_dir: Path) -> None:
    for name, method in METHODS.items():
        whole, sft = reward(tmp_path, method), stage(tmp_path, "sft", **{"from": "reward"})
        with pytest.raises(RecipeError, match=r"stages\.sft\.from: `reward` is a whole model with a head"):
            recipe(tmp_path, tiny_model_dir, name, reward=whole, sft=sft)


@pytest.mark.parametrize("kind", ["classification", "token_classification"])
def test_a_classifier_is_an_adapter(tmp_path: Path, tiny_model_dir: Path, kind: str) -> None:
    made = stage(tmp_path, "sft", method=METHODS["full"]) | {"kind": kind, "labels": ["O", "B-x"]}
    with pytest.raises(RecipeError, match=rf"stages\.c\.method: full makes a whole model, and a {kind} stage makes"):
        recipe(tmp_path, tiny_model_dir, c=made)


def rl(folder: Path, model: str) -> dict[str, Any]:
    prompts = folder / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "Film?"}) + "\n")
    return {
        "kind": "rl",
        "policy": "sft",
        "rewards": [{"name": "model", "stage": model}],
        "data": {"train": {"path": str(prompts)}},
        "train": {"steps": 1},
    }


@pytest.mark.slow
def test_a_registered_one_is_known_by_its_method_and_refused_where_it_cannot_score(
    tmp_path: Path, tiny_model_dir: Path, tiny_model_copy: Path
) -> None:
    made = recipe(tmp_path, tiny_model_dir, reward=reward(tmp_path, METHODS["freeze"]))
    ref = run_recipe(made, Silent())["reward"]["registered"]
    with pytest.raises(UserError, match=r"a reward model that is a whole model.*allowed: a reward model that is"):
        load_adapter(artifact(made), "reward_model")
    sft = stage(tmp_path, "sft", method=LORA)
    later = recipe(tmp_path, tiny_model_dir, "later", sft=sft, rl=rl(tmp_path, ref))
    check_recipe(later)
    check_plan(later, later.stages, pytest.fail)
    found = with_versions(later)
    roles = {role.name: role for role in found.stages["rl"].roles(found.stages)}
    assert roles["reward"].method == roles["critic"].method == Freeze(layers=1)

    rounded = later.model_copy(update={"model": later.model.model_copy(update={"quantization": "int8"})})
    tokens = tiny_model_copy / "tokenizer.json"
    words = json.loads(tokens.read_text())
    words["model"]["vocab"]["another"] = words["model"]["vocab"].pop(next(iter(words["model"]["vocab"])))
    words["model"]["merges"] = []
    tokens.write_text(json.dumps(words))
    other = later.model_copy(update={"model": later.model.model_copy(update={"base": str(tiny_model_copy)})})
    for wrong, message in (
        (rounded, r"stages\.rl\.rewards\.0\.stage: .*a whole reward model, whose weights model\.quantization int8"),
        (other, r"was trained on .*, the same weights with another tokenizer"),
    ):
        for check in (check_recipe, lambda one: check_plan(one, one.stages, pytest.fail)):
            with pytest.raises(UserError, match=message):
                check(wrong)


@pytest.mark.slow
def test_it_starts_from_the_weights_of_a_whole_sft(tmp_path: Path, tiny_model_dir: Path) -> None:
    """Those below the last block, which it does not train, are the SFT's bit for bit; also from the registry."""
    sft = stage(tmp_path, "sft", method=METHODS["full"])
    made = recipe(tmp_path, tiny_model_dir, sft=sft, reward=reward(tmp_path, METHODS["freeze"], **{"from": "sft"}))
    check_recipe(made)
    found = run_recipe(made, Silent())
    version = Registry(registry_url(made)).get(found["reward"]["registered"])
    assert set(version.lineage["parents"]) == {found["sft"]["registered"]}

    base, before = read_weights(tiny_model_dir), read_weights(Path(run_folder(made)) / "stages/sft/artifact")
    after = read_weights(artifact(made))
    assert after.keys() - before.keys() == {"score.weight"}
    assert not torch.equal(base["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".layers.1." in name}

    again = {"from": found["sft"]["registered"]}
    later = recipe(tmp_path, tiny_model_dir, "later", reward=reward(tmp_path, METHODS["freeze"], **again))
    check_recipe(later)
    run_recipe(later, Silent())
    other = read_weights(artifact(later))
    assert all(torch.equal(other[name], after[name]) for name in after)


@pytest.mark.slow
def test_an_adapter_does_not_start_from_a_whole_sft(tmp_path: Path, tiny_model_dir: Path) -> None:
    made = recipe(tmp_path, tiny_model_dir, sft=stage(tmp_path, "sft", method=METHODS["full"]))
    ref = run_recipe(made, Silent())["sft"]["registered"]
    later = recipe(tmp_path, tiny_model_dir, "later", reward=reward(tmp_path, LORA, **{"from": ref}))
    with pytest.raises(UserError, match=r"stages\.reward\.method: lora makes an adapter on model\.base, and"):
        check_recipe(later)
