"""A whole policy for real: SFT of all weights, GRPO of all weights, then of the last block, on Ray and vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from triptych.models.weights import read_weights
from triptych.observe.log import read_metrics
from triptych.registry import Registry

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.exhaustive]


@pytest.mark.timeout(900)
def test_a_whole_policy_is_learned_synced_registered_and_gone_on_from(recipe_file: Path) -> None:
    recipe = yaml.safe_load(recipe_file.read_text())
    stages = recipe["stages"]
    del stages["reward"]
    stages["sft"] |= {"method": {"name": "full"}, "train": stages["sft"]["train"] | {"steps": 10}}
    terms = {
        "algorithm": {"name": "grpo"},
        "kl": {"coef": 0.05},
        "rewards": [{"name": "length", "limit": 12, "cache": 8}],
    }
    ppo = stages.pop("ppo")
    ppo["rollout"]["engines"] = 1
    training = ppo["train"] | {"steps": 2, "optimizer": {"lr": 1e-4}}
    stages["rl"] = ppo | terms | {"train": training}
    stages["more"] = stages["rl"] | {"policy": "rl", "method": {"name": "freeze", "layers": 1}, "register_as": "more"}
    recipe_file.write_text(yaml.safe_dump(recipe))

    done = subprocess.run(
        [TRIPTYCH, "run", str(recipe_file), "--cpus", "2", "--json"], capture_output=True, text=True, timeout=850
    )
    assert done.returncode == 0, done.stderr
    found, runs = json.loads(done.stdout), Path(recipe["storage"]["runs"])
    run, registry = runs / "tiny", Registry(f"sqlite:///{runs}/registry.db")
    for name, parent in (("rl", "tiny-sft@1"), ("more", "tiny-rl@1")):
        rows = read_metrics(str(run / "stages" / name))
        assert [row["step"] for row in rows] == [1, 2]
        assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4), "the reference is what the policy started from"
        assert max(row["sync_gap"] for row in rows) < 1e-3
        assert max(row["logprob_gap_max"] for row in rows) < 1e-2
        assert rows[1]["kl"] != 0.0
        version = registry.get(found[name]["registered"])
        assert version.kind == "model"
        assert set(version.lineage["parents"]) == {parent}
    sft, rl, more = (read_weights(registry.fetch(found[name]["registered"])) for name in ("sft", "rl", "more"))
    assert sft.keys() == rl.keys() == more.keys()
    assert all(not torch.equal(sft[name], rl[name]) for name in sft)
    changed = {name for name in rl if not torch.equal(rl[name], more[name])}
    assert changed == {name for name in rl if ".layers.1." in name}
    assert json.loads((run / "stages/rl/state.json").read_text())["stage"]["method"] == {"name": "full"}
