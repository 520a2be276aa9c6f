"""Whole models for real: SFT of all weights, a reward model from it, GRPO by that reward model, on Ray and vLLM."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification

from triptych.models.weights import read_weights
from triptych.observe.log import read_metrics
from triptych.registry import Registry

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.exhaustive]


def stages_of(stages: dict[str, Any]) -> dict[str, Any]:
    """SFT and reward model of all weights, a LoRA, and GRPO of each policy by the whole reward model."""
    full, lora = {"method": {"name": "full"}}, {"method": {"name": "lora", "r": 4}}
    sft, reward, rl = stages["sft"], stages["reward"], stages["ppo"]
    sft["train"] |= {"steps": 6}
    reward.pop("min_accuracy", None)
    reward["train"] |= {"steps": 6}
    rl["rollout"]["engines"] = 1
    rl |= {"algorithm": {"name": "grpo"}, "kl": {"coef": 0.05}}
    rl |= {"train": rl["train"] | {"steps": 2, "optimizer": {"lr": 1e-4}}}
    return {
        "sft": sft | full,
        "adapter": sft | lora | {"needs": ["sft"], "register_as": "adapter"},
        "reward": reward | full | {"from": "sft"},
        "rl": rl | {"policy": "sft"},
        "light": rl | {"policy": "adapter", "register_as": "light"},
    }


def plain_scores(folder: Path, rollouts: dict[str, list[Any]]) -> torch.Tensor:
    """Normalised scores [N] of transformers' own classifier, a row at a time."""
    constants = json.loads((folder / "triptych.json").read_text())["normalization"]
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = [[*prompt, *said] for prompt, said in zip(rollouts["prompt_ids"], rollouts["response_ids"], strict=True)]
    with torch.no_grad():
        raw = torch.stack([classifier(input_ids=torch.tensor([row])).logits[0, 0] for row in rows])
    return (raw - constants["mean"]) / constants["std"]


@pytest.mark.timeout(900)
def test_policies_learn_from_a_whole_reward_model_that_came_from_a_whole_sft(recipe_file: Path) -> None:
    recipe = yaml.safe_load(recipe_file.read_text())
    recipe["stages"] = stages_of(recipe["stages"])
    recipe_file.write_text(yaml.safe_dump(recipe))
    done = subprocess.run(
        [TRIPTYCH, "run", str(recipe_file), "--cpus", "2", "--json"], capture_output=True, text=True, timeout=850
    )
    assert done.returncode == 0, done.stderr
    found, runs = json.loads(done.stdout), Path(recipe["storage"]["runs"])
    registry = Registry(f"sqlite:///{runs}/registry.db")
    folders = {name: registry.fetch(found[name]["registered"]) for name in found}
    assert set(registry.get(found["reward"]["registered"]).lineage["parents"]) == {"tiny-sft@1"}
    sft, reward = read_weights(folders["sft"]), read_weights(folders["reward"])
    assert reward.keys() - sft.keys() == {"score.weight"}
    base = read_weights(Path(recipe["model"]["base"]))
    moved = {name: (reward[name] - one).norm() for name, one in sft.items()}
    assert sum(moved.values()) < sum((reward[name] - base[name]).norm() for name in base)

    for name, policy, kind in (("rl", "tiny-sft@1", "model"), ("light", "adapter@1", "policy")):
        version = registry.get(found[name]["registered"])
        assert version.kind == kind
        assert set(version.lineage["parents"]) == {policy, "tiny-reward@1"}
        rows = read_metrics(str(runs / "tiny/stages" / name))
        assert [row["step"] for row in rows] == [1, 2]
        assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4)
        assert all(row["grad_norm"] > 0 for row in rows)
        for step in (1, 2):
            rollouts = pq.read_table(runs / f"tiny/stages/{name}/rollouts/step-{step:08d}.parquet").to_pydict()
            scores = torch.tensor(rollouts["reward_model"])
            torch.testing.assert_close(scores, plain_scores(folders["reward"], rollouts), rtol=1e-5, atol=1e-5)
