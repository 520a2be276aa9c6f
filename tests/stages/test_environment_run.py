"""Trajectories of several turns for real: SFT, then GRPO whose turns are replied to, on Ray and vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from triptych.observe.log import read_metrics

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.exhaustive]


@pytest.mark.timeout(900)
def test_a_policy_is_replied_to_and_learns_from_its_own_tokens(recipe_file: Path) -> None:
    recipe = yaml.safe_load(recipe_file.read_text())
    stages = recipe["stages"]
    del stages["reward"]
    rl = stages["rl"] = stages.pop("ppo")
    rl["rollout"] |= {"engines": 1, "sampling": {"max_new_tokens": 16}}
    rl |= {
        "algorithm": {"name": "grpo"},
        "environment": {
            "name": "function",
            "function": "tests.support.environments:Counting",
            "max_turns": 3,
            "max_reply_tokens": 48,
        },
        "rewards": [{"name": "environment"}, {"name": "length", "limit": 48, "cache": 40}],
        "train": rl["train"] | {"steps": 2},
    }
    recipe_file.write_text(yaml.safe_dump(recipe))
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    command = [TRIPTYCH, "run", str(recipe_file), "--cpus", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, env=environment)
    assert done.returncode == 0, done.stderr
    stage = Path(recipe["storage"]["runs"]) / "tiny" / "stages" / "rl"
    rows = read_metrics(str(stage))
    assert [row["step"] for row in rows] == [1, 2]
    assert max(row["logprob_gap_max"] for row in rows) < 1e-3
    table = pq.read_table(stage / "rollouts" / "step-00000002.parquet").to_pydict()
    assert any(not all(drawn) for drawn in table["drawn"]), "no turn was replied to"
    assert max(table["reward_environment"]) > 1.0
    shown = [TRIPTYCH, "runs", "samples", "tiny", "--runs", recipe["storage"]["runs"], "--json"]
    assert "turn 1" in json.dumps(json.loads(subprocess.run(shown, capture_output=True, text=True, check=True).stdout))
