"""The calculator example for real: a policy that asks for results over three turns, on Ray and vLLM."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from triptych.data.replies import ReplyTokens
from triptych.environments.calculator import CalculatorEpisode
from triptych.models.base import resolve_base
from triptych.observe.log import read_metrics
from triptych.recipe import Model

ROOT = Path(__file__).parents[2]
TRIPTYCH = str(Path(sys.executable).parent / "triptych")


def run_example(folder: Path, *changes: str) -> Path:
    """Run the example on data of its own; the folder of its RL stage."""
    prepare = [sys.executable, str(ROOT / "examples/calculator/prepare.py"), "--out", str(folder / "data")]
    subprocess.run(prepare, check=True, capture_output=True)
    data = {"sft.data.train": "chats", "rl.data.train": "questions.train", "rl.data.heldout": "questions.heldout"}
    settings = [f"stages.{field}.path={folder / 'data' / file}.jsonl" for field, file in data.items()]
    settings += [f"storage.runs={folder / 'runs'}", *changes]
    command = [TRIPTYCH, "run", "examples/calculator/recipe.yaml", "--json"]
    command += [word for one in settings for word in ("--set", one)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, cwd=ROOT, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "calculator" / "stages" / "rl"


def check_tokens(row: dict[str, Any], tokenizer: Any, replies: ReplyTokens) -> int:
    """That a trajectory is its turns and the calculator's replies, to the token; how many turns there are."""
    ids, drawn, calculator = row["response_ids"], row["drawn"], CalculatorEpisode()
    place = turns = 0
    while place < len(ids):
        start = place
        while place < len(ids) and drawn[place]:
            place += 1
        turns += 1
        if place == len(ids):
            break
        assert ids[place - 1] == replies.end
        said = calculator.step(tokenizer.decode(ids[start : place - 1])).reply
        assert said is not None
        expected = replies.of(said)
        assert ids[place : place + len(expected)] == expected
        place += len(expected)
        assert drawn[place], "a turn of the policy follows each reply"
    for name in ("logprobs", "versions", "policy_logprobs", "advantages"):
        assert [value is not None for value in row[name]] == drawn
    return turns


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
def test_the_tokens_of_three_turns_go_in_as_they_came_out(tmp_path: Path) -> None:
    stage = run_example(tmp_path, "stages.rl.train.steps=2", "stages.rl.rollout.prompts_per_step=6")
    tokenizer = AutoTokenizer.from_pretrained(resolve_base(Model(base="smollm2-135m-instruct")))
    replies = ReplyTokens(tokenizer, "user")
    turns = [
        check_tokens(row, tokenizer, replies)
        for step in (1, 2)
        for row in pq.read_table(stage / "rollouts" / f"step-{step:08d}.parquet").to_pylist()
    ]
    assert len(turns) == 48
    assert turns.count(3) > 24, "SFT has taught to ask twice"
    rows = read_metrics(str(stage))
    assert max(row["logprob_gap_max"] for row in rows) < 1e-3, "the engines saw the tokens that the learner sees"
    assert 0.0 < max(row["reward"] for row in rows) <= 1.0
