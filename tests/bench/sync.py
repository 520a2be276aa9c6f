"""PPO with merged weights in its engines beside PPO with an adapter there: gap of log-probabilities, seconds, reward.

    python tests/bench/sync.py [--rounds 1] [--out build/bench/sync.json]

SmolLM2-135M-Instruct, LoRA of rank 16 on all linear layers, steps of 4 prompts x 2 answers of 32 tokens, all arms from
one SFT policy and one reward model, with one seed. In bfloat16, merged weights lose what is too small to move a weight,
and an adapter beside them does not. The first step's gap is that of the SFT policy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from harness import Arm, Comparison, emit, run_benchmark
from plan.run_data import write_data
from plan.run_recipes import LORA16, SMALL, stage

STEPS = {"bfloat16": 1, "float32": 4}
"""Fewer in bfloat16, which a processor without instructions for it emulates eighteen times as slowly."""
MODES = ("merged", "adapter")
FIGURES = {
    "gap of a log-probability": "logprob_gap",
    "largest gap": "logprob_gap_max",
    "gap after a sync": "sync_gap",
    "tokens clipped": "clipped",
    "seconds to sample": "seconds_sample",
    "seconds to sync": "seconds_sync",
}
"""Name -> metric of a step, of which the mean is taken."""


def run(folder: Path, name: str, dtype: str, stages: dict[str, Any]) -> None:
    """`triptych run` in the folder; RuntimeError with what it wrote where it fails."""
    recipe = {"name": name, "model": {"base": "smollm2-135m-instruct", "dtype": dtype}, "stages": stages}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(recipe))
    command = [str(Path(sys.executable).parent / "triptych"), "run", f"{name}.yaml", "--set", "storage.runs=runs"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if ended.returncode:
        raise RuntimeError(f"{name}: exit code {ended.returncode}\n{ended.stderr[-3000:]}")


def prepare(folder: Path) -> None:
    """Register the policy and the reward model that all arms start from."""
    write_data(folder)
    stages = {"sft": stage("sft", "sft", LORA16, SMALL), "reward": stage("reward", "pairs", LORA16, SMALL)}
    run(folder, "start", "float32", stages)


def measure(folder: Path, dtype: str, mode: str) -> None:
    """One arm."""
    ppo = {
        "kind": "rl",
        "policy": "start-sft@1",
        "rewards": [{"name": "model", "stage": "start-reward@1"}],
        "data": {"train": {"path": "prompts.train.jsonl", "limit": 16}},
        "train": {"steps": STEPS[dtype], "optimizer": {"lr": 3e-4}, "batch": {"minibatches": 2, "micro_tokens": 1024}},
        "rollout": {
            "prompts_per_step": 4,
            "samples_per_prompt": 2,
            "max_prompt_tokens": 192,
            "engines": 1,
            "sync": mode,
            "sampling": {"max_new_tokens": 32},
        },
    }
    name = f"{dtype}-{mode}-{os.getpid()}"
    run(folder, name, dtype, {"ppo": ppo})
    ended = folder / "runs" / name / "stages" / "ppo"
    steps = [json.loads(line) for file in sorted((ended / "metrics").glob("*.jsonl")) for line in file.open()]
    assert len(steps) == STEPS[dtype]
    figures = {name: statistics.fmean(step[metric] for step in steps) for name, metric in FIGURES.items()}
    seconds = [sum(value for key, value in step.items() if key.startswith("seconds_")) for step in steps]
    emit(
        figures | {"seconds a step": statistics.fmean(seconds), "reward": statistics.fmean(s["reward"] for s in steps)}
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/bench/sync.json"))
    parser.add_argument("--arm", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        folder, dtype, mode = options.arm
        return measure(Path(folder), dtype, mode)
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        arms = [
            Arm(f"{dtype}, {mode}", [sys.executable, __file__, "--arm", place, dtype, mode], timeout_s=1200)
            for dtype in STEPS
            for mode in MODES
        ]
        comparisons = [
            Comparison(figure, f"{dtype}, adapter", f"{dtype}, merged", less_is_better=True)
            for figure in ("gap of a log-probability", "seconds a step")
            for dtype in STEPS
        ]
        run_benchmark("Weight sync in PPO on CPU", "see the figure", arms, comparisons, options.rounds, options.out)
    return None


if __name__ == "__main__":
    main()
