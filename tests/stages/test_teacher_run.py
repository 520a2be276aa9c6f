"""Distillation from a model of its own for real: SFT, then two steps against a teacher's engine, on Ray and vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from triptych.observe.log import read_metrics

TRIPTYCH = str(Path(sys.executable).parent / "triptych")
pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.exhaustive]


@pytest.mark.timeout(900)
def test_a_policy_is_held_against_the_engine_of_a_teacher(recipe_file: Path) -> None:
    recipe = yaml.safe_load(recipe_file.read_text())
    stages = recipe["stages"]
    del stages["reward"]
    rl = stages["rl"] = stages.pop("ppo")
    rl["rollout"] |= {"engines": 1, "sampling": {"max_new_tokens": 12, "temperature": 1.0}}
    engines = {"engines": 1, "cpus": rl["rollout"].get("cpus", 0.5), "kv_cache_gb": 0.1}
    teacher = {"base": recipe["model"]["base"], "dtype": "float32", "engines": engines}
    rl |= {
        "algorithm": {"name": "opd", "teacher": teacher},
        "evaluation": {"temperature": 1.0},
        "kl": {"coef": 0.05},
        "rewards": [{"name": "length", "limit": 12, "cache": 8, "weight": 0.0}],
        "train": rl["train"] | {"steps": 2},
    }
    recipe_file.write_text(yaml.safe_dump(recipe))
    command = [TRIPTYCH, "run", str(recipe_file), "--cpus", "3", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850)
    assert done.returncode == 0, done.stderr
    stage = Path(recipe["storage"]["runs"]) / "tiny" / "stages" / "rl"
    rows = read_metrics(str(stage))
    assert [row["step"] for row in rows] == [1, 2]
    assert all(row["teacher_kl"] > 1.0 for row in rows), "SFT has taken the policy away from the base, its teacher"
    table = pq.read_table(stage / "rollouts" / "step-00000002.parquet").to_pydict()
    lengths = [len(ids) for ids in table["response_ids"]]
    assert [len(values) for values in table["teacher_logprobs"]] == lengths
    assert json.loads(done.stdout)["rl"]["registered"]
