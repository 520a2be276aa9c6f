"""A stage's folder remembers what it was begun from, in the form of this version and of the one before."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from triptych.errors import UserError
from triptych.observe.progress import Progress
from triptych.recipe import load_recipe_text
from triptych.stages.context import StageContext, remember

OLD_STATE = Path(__file__).with_name("state_of_before.json")
"""Written by the version before `kind: rl`, of the recipe below."""

OLD_RECIPE = """\
name: reviews
model: {base: smollm2-135m-instruct}
stages:
  ppo:
    kind: ppo
    policy: a@1
    reward: b@2
    data: {train: {path: prompts.jsonl}}
    steps: 8
    prompts_per_step: 4
    micro_tokens: auto
    ppo: {minibatches: 2, kl: {target: 3.0, horizon: 100}}
    rollout: {kv_cache_gb: 0.1, sampling: {max_new_tokens: 12}}
    policy_optimizer: {lr: 0.001}
    value_optimizer: {lr: 0.002}
    checkpoint_every: 1
"""
DIGESTS, PARENTS = {"train": "digest"}, {"a@1": "one", "b@2": "two"}


def context(folder: Path, *overrides: str) -> StageContext[Any]:
    recipe = load_recipe_text(OLD_RECIPE, "recipe.yaml", overrides)
    run = str(folder / "reviews")
    return StageContext(
        recipe=recipe,
        name="ppo",
        stage=recipe.trained["ppo"],
        run=run,
        base_dir=folder,
        base_fingerprint="fingerprint",
        registry_url="",
        artifacts="",
        progress=Progress(None),
    )


def test_a_stage_begun_by_the_version_before_goes_on(tmp_path: Path) -> None:
    state = tmp_path / "reviews" / "stages" / "ppo" / "state.json"
    state.parent.mkdir(parents=True)
    shutil.copy(OLD_STATE, state)
    inputs = remember(context(tmp_path, "stages.ppo.workers.count=2"), DIGESTS, PARENTS)
    assert inputs["stage"]["kind"] == "rl"
    assert json.loads(state.read_bytes()) == json.loads(OLD_STATE.read_bytes())


def test_a_stage_begun_before_a_field_was_there_goes_on_with_its_default(tmp_path: Path) -> None:
    state = tmp_path / "reviews" / "stages" / "ppo" / "state.json"
    remember(context(tmp_path), DIGESTS, PARENTS)
    before = json.loads(state.read_bytes())
    before["stage"]["rewards"] = [{"name": "model", "stage": "b@2"}]
    state.write_text(json.dumps(before))
    remember(context(tmp_path), DIGESTS, PARENTS)
    before["stage"]["rewards"] = [{"name": "model", "stage": "b@2", "weight": 2.0}]
    state.write_text(json.dumps(before))
    with pytest.raises(UserError, match=r"\(stage\.rewards: .*'weight': 2.0"):
        remember(context(tmp_path), DIGESTS, PARENTS)


def test_a_change_since_the_version_before_is_named(tmp_path: Path) -> None:
    state = tmp_path / "reviews" / "stages" / "ppo" / "state.json"
    state.parent.mkdir(parents=True)
    shutil.copy(OLD_STATE, state)
    with pytest.raises(UserError, match=r"\(stage\.algorithm\.clip: 0\.2 -> 0\.3\)"):
        remember(context(tmp_path, "stages.ppo.ppo.clip=0.3"), DIGESTS, PARENTS)


def test_fields_of_an_algorithm_that_an_earlier_version_did_not_know_have_their_defaults(tmp_path: Path) -> None:
    remember(context(tmp_path), DIGESTS, PARENTS)
    state = tmp_path / "reviews" / "stages" / "ppo" / "state.json"
    inputs = json.loads(state.read_bytes())
    del inputs["stage"]["kl"]["placement"], inputs["stage"]["importance"]["floor"], inputs["stage"]["algorithm"]["name"]
    del inputs["stage"]["algorithm"]["aggregation"], inputs["stage"]["algorithm"]["critic"]["updates"]
    state.write_text(json.dumps(inputs))
    remember(context(tmp_path), DIGESTS, PARENTS)
    with pytest.raises(UserError, match=r"\(stage\.algorithm\.aggregation: 'token' -> 'constant'\)"):
        remember(context(tmp_path, "stages.ppo.algorithm.aggregation=constant"), DIGESTS, PARENTS)


def test_fields_without_effect_may_change(tmp_path: Path) -> None:
    remember(context(tmp_path), DIGESTS, PARENTS)
    changes = ("workers.count=3", "checkpoint_every=9", "register_as=other", "micro_tokens=64")
    with pytest.raises(UserError, match=r"stage\.train\.batch\.micro_tokens"):
        remember(context(tmp_path, *(f"stages.ppo.{change}" for change in changes)), DIGESTS, PARENTS)
    remember(context(tmp_path, *(f"stages.ppo.{change}" for change in changes[:3])), DIGESTS, PARENTS)


def test_an_adapter_knows_the_commit_of_a_base_of_the_hub(tmp_path: Path) -> None:
    ctx = context(tmp_path, "model.base=owner/base")
    cached = tmp_path / "models--owner--base" / "snapshots" / "c0ffee"
    cached.mkdir(parents=True)
    assert replace(ctx, base_dir=cached).about()["hub_base"] == {"id": "owner/base", "revision": "c0ffee"}
    assert "hub_base" not in replace(ctx, base_dir=tmp_path).about()
