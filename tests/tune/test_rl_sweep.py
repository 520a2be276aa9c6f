"""Sweeps of reinforcement learning: what trials start from, what they may aim at, and one whole sweep on a cluster."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tests.support.gradient_cases import make_model
from triptych import storage
from triptych.errors import RunError, UserError
from triptych.models.adapter import Adapter, Normalization, save_adapter
from triptych.models.base import fingerprint
from triptych.observe.progress import Progress
from triptych.recipe import Lora, Recipe, load_recipe
from triptych.registry import Registry
from triptych.stages.artifact import summary
from triptych.stages.run import run_folder, run_recipe
from triptych.tune.budget import devices_of
from triptych.tune.parents import copy_parents, parents_of
from triptych.tune.sweep import check_sweep, run_sweep, sweep_folder, train_best
from triptych.tune.trial import Assignment

LR = "stages.rl.train.optimizer.lr"
METHOD = Lora(r=4, alpha=8)
WORDS = ("warm", "dull", "funny", "flat", "lovely", "slow", "great", "long")
Make = Callable[..., Recipe]


def _rows(path: Path, rows: list[dict[str, Any]]) -> dict[str, str]:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"path": str(path)}


@pytest.fixture
def make(tiny_model_dir: Path, tmp_path: Path) -> Make:
    """A policy, a reward model, and a sweep of PPO of four steps over its learning rate; fields are given."""
    chats = [{"prompt": f"Film {i}?", "response": f"It is {WORDS[i % 8]}."} for i in range(16)]
    pairs = [{"prompt": f"Film {i}?", "chosen": f"It is {WORDS[i % 4 * 2]}.", "rejected": "No."} for i in range(16)]
    prompts = [{"prompt": f"What about film {i}?"} for i in range(6)]
    method = METHOD.model_dump(mode="json")
    short = {"steps": 4, "batch": {"rows": 4, "micro_tokens": 256, "max_length": 128}}
    data = {
        "sft": {"train": _rows(tmp_path / "sft.jsonl", chats)},
        "reward": {"train": _rows(tmp_path / "pairs.jsonl", pairs), "heldout": _rows(tmp_path / "more.jsonl", pairs)},
        "rl": {
            "train": _rows(tmp_path / "prompts.jsonl", prompts),
            "heldout": _rows(tmp_path / "h.jsonl", prompts[:2]),
        },
    }
    answers = {"max_new_tokens": 8}

    def made(stage: dict[str, Any] | None = None, **sweep: Any) -> Recipe:
        rl = {
            "kind": "rl",
            "policy": "sft",
            "rewards": [{"stage": "reward"}],
            "judge": "vader",
            "data": data["rl"],
            "train": {"steps": 4, "batch": {"micro_tokens": 512}, "evaluate_every": 1, "checkpoint_every": 1},
            "rollout": {
                "engines": 1,
                "prompts_per_step": 2,
                "samples_per_prompt": 2,
                "max_prompt_tokens": 96,
                "kv_cache_gb": 0.1,
                "sampling": answers,
            },
            "evaluation": answers,
        }
        recipe = {
            "name": "tiny",
            "model": {"base": str(tiny_model_dir), "dtype": "float32"},
            "storage": {"runs": str(tmp_path / "runs")},
            "stages": {
                "sft": {"kind": "sft", "method": method, "data": data["sft"], "train": short},
                "reward": {"kind": "reward", "method": method, "data": data["reward"], "train": short},
                "rl": rl | (stage or {}),
            },
            "sweep": {
                "stage": "rl",
                "space": {LR: {"loguniform": [1e-4, 1e-1]}},
                "objective": {"metric": "heldout_reward", "mode": "max"},
                "budget": {"trials": 6},
                "search": "random",
                "concurrency": 1,
            }
            | sweep,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(recipe, sort_keys=False))
        return load_recipe(path)

    return made


@pytest.fixture
def parents(tiny_model_dir: Path, tmp_path: Path) -> Callable[[Recipe], None]:
    """Registers a policy and a reward model with random weights, as if both stages of the recipe had run."""

    def done(recipe: Recipe, accuracy: float = 0.9) -> None:
        model = make_model(tiny_model_dir, torch.float32, roles=("policy", "critic"))
        head = {name: tensor.detach().clone() for name, tensor in model.heads["critic"].named_parameters()}
        weights = {name: tensor * accuracy for name, tensor in model.adapter("policy").items()}
        policy = Adapter(METHOD, weights, "policy")
        scale = Normalization(0.1, 0.5)
        scoring = Adapter(METHOD, model.adapter("critic"), "reward_model", head=head, normalization=scale)
        registry = Registry(f"sqlite:///{tmp_path}/runs/registry.db", str(tmp_path / "runs" / "artifacts"))
        for stage, adapter in (("sft", policy), ("reward", scoring)):
            folder = tmp_path / f"{stage}-adapter-{accuracy}"
            folder.mkdir()
            save_adapter(folder, adapter, {"base": recipe.model.base, "base_fingerprint": fingerprint(tiny_model_dir)})
            version = registry.register(
                f"tiny-{stage}",
                folder,
                kind=adapter.kind,
                base=recipe.model.base,
                base_fingerprint=fingerprint(tiny_model_dir),
                lineage={},
                metrics={"heldout_accuracy": accuracy},
            )
            place = storage.join(run_folder(recipe), "stages", stage, "summary.json")
            storage.write_bytes(place, json.dumps({"registered": version.ref, "metrics": version.metrics}).encode())

    return done


def test_what_trials_start_from_must_have_run(make: Make) -> None:
    with pytest.raises(UserError, match=r"trials of rl start from sft, which is not done: run it first"):
        check_sweep(make())


def test_trials_start_from_copies_in_the_registry_of_the_sweep(make: Make, parents: Callable[[Recipe], None]) -> None:
    recipe = make()
    parents(recipe)
    found, folder = parents_of(recipe), sweep_folder(recipe)
    values = copy_parents(recipe, folder)
    assert values == {"stages.rl.policy": "tiny-sft@1", "stages.rl.rewards.0.stage": "tiny-reward@1"}
    assert copy_parents(recipe, folder) == values  # a sweep that goes on copies nothing again
    own = Registry(f"sqlite:///{folder}/registry.db", storage.join(folder, "artifacts"))
    assert {own.get(ref).sha256 for ref in values.values()} == {version.sha256 for version in found.values()}
    trial = Assignment(3, {LR: 0.001}, "trial-003").trial(recipe, folder, values)
    (stage,) = trial.recipe.stages.values()
    assert [one.ref for one in stage.references()] == ["tiny-sft@1", "tiny-reward@1"]
    assert trial.recipe.trained["rl"].train.optimizer.lr == 0.001
    assert trial.recipe.storage.runs == folder


def test_a_sweep_goes_on_from_the_same_adapters_alone(make: Make, parents: Callable[..., None]) -> None:
    recipe = make()
    parents(recipe)
    copy_parents(recipe, sweep_folder(recipe))
    parents(recipe, 0.4)  # both stages again, with other weights
    with pytest.raises(UserError, match=r"the trials of this sweep started from another stages\.rl\.policy"):
        copy_parents(recipe, sweep_folder(recipe))


def test_a_reward_model_below_its_gate_starts_no_trial(make: Make, parents: Callable[..., None]) -> None:
    recipe = make()
    parents(recipe, 0.4)
    gated = recipe.stages["reward"].model_copy(update={"min_accuracy": 0.6})
    with pytest.raises(RunError, match=r"stage reward: .*PPO may not learn from it"):
        check_sweep(recipe.model_copy(update={"stages": recipe.stages | {"reward": gated}}))


def test_an_adapter_of_another_kind_starts_no_trial(make: Make, parents: Callable[[Recipe], None]) -> None:
    recipe = make({"policy": "tiny-reward@1"})
    parents(recipe)
    with pytest.raises(UserError, match=r"stages\.rl\.policy: tiny-reward@1 is a reward_model; allowed: a policy"):
        check_sweep(recipe)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"objective": {"metric": "loss", "mode": "min"}},
            r"no 'loss'; allowed: heldout_reward, .*heldout_judge, reward",
        ),
        (
            {"scheduler": "pbt"},
            "pbt lets a trial go on from another's weights, which rl with engines of its own does not",
        ),
        (
            {"space": {"stages.rl.policy": {"choice": ["sft", "other@1"]}}},
            r"sweep\.space\.stages\.rl\.policy: all trials start from the same adapters",
        ),
        (
            {"space": {"stages.rl.rewards": {"choice": [[{"stage": "reward"}]]}}},
            r"sweep\.space\.stages\.rl\.rewards: all trials start from the same adapters",
        ),
    ],
)
def test_sweeps_that_the_stage_cannot_do(make: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_sweep(make(**change))


def test_device_seconds_count_engines_too(make: Make) -> None:
    """One worker and one engine; with GPUs, these alone."""
    stage = make().stages["rl"]
    assert devices_of("rl", stage) == 2.0
    with_gpus = make(
        {"rollout": {"engines": 2, "gpus": 0.5}, "train": {"steps": 4, "workers": {"count": 2, "gpus": 1}}}
    )
    assert devices_of("rl", with_gpus.stages["rl"]) == 3.0


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.exhaustive
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_cluster")
def test_six_trials_under_asha_and_the_winner_repeated_by_run(make: Make) -> None:
    recipe = make(scheduler="asha", asha={"grace": 1, "reduction": 2})
    unswept = recipe.model_copy(update={"sweep": None})
    for stage in ("sft", "reward"):
        run_recipe(unswept, Progress.start(), stage)
    found = run_sweep(recipe, Progress.start())
    assert len(found.trials) == 6
    assert {trial.status for trial in found.trials} <= {"done", "stopped"}
    done = [trial for trial in found.trials if trial.status == "done"]
    assert done
    assert all([report["step"] for report in trial.reports] == [1, 2, 3, 4] for trial in done)
    assert any(trial.status == "stopped" and trial.step < 4 for trial in found.trials)
    best = found.best
    assert best is not None
    assert best.metrics["heldout_reward"] == max(trial.metrics["heldout_reward"] for trial in done)
    train_best(found, Progress.start())
    again = summary(run_folder(recipe), "rl")
    assert again is not None
    assert again["metrics"]["heldout_reward"] == pytest.approx(best.metrics["heldout_reward"], abs=1e-3)
