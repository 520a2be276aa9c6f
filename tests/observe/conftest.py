"""A run's folder as the stages leave it, with made-up but plausible numbers."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RECIPE = """\
name: reviews
seed: 0
model:
  base: smollm2-135m-instruct
  dtype: bfloat16
stages:
  sft:
    kind: sft
    method: {name: lora, r: 16, alpha: 32}
    data:
      train: {path: data/sft.train.jsonl}
  reward:
    kind: reward
    method: {name: lora, r: 16, alpha: 32}
  ppo:
    kind: rl
    policy: sft
    rewards: [{name: model, stage: reward}]
    train: {steps: 48}
    judge: vader
"""

PROMPT = (
    "system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face\n"
    "user\nWrite a one-sentence opinion of a film about {}.\nassistant"
)
SUBJECTS = ("a lighthouse", "two brothers", "a lost dog", "the last train", "a heist", "war", "jazz", "a wedding")
HOSTILE = "<script>document.title = 'owned'</script>\"'><img src=x onerror=alert(1)> & 語"

REWARD_REPORT = {
    "pairs": 200,
    "accuracy": 0.905,
    "gaps": {
        "edges": [-6 + 0.6 * i for i in range(21)],
        "counts": [0] * 6 + [1, 3, 6, 9, 15, 21, 26, 30, 28, 24, 37] + [0] * 3,
    },
    "calibration": {
        "ece": 0.0314,
        "bins": [
            {"low": 0.5, "high": 0.75, "pairs": 40, "confidence": 0.62, "accuracy": 0.7},
            {"low": 0.75, "high": 0.95, "pairs": 0, "confidence": None, "accuracy": None},
            {"low": 0.95, "high": 1.0, "pairs": 160, "confidence": 0.97, "accuracy": 0.956},
        ],
    },
    "length": {
        "correlation": -0.21,
        "baseline": {"prefers": "longer", "accuracy": 0.535},
        "chosen_shorter": {"pairs": 90, "accuracy": 0.856},
        "chosen_longer": {"pairs": 107, "accuracy": 0.944},
    },
    "members": {"accuracy": [0.9, 0.88], "disagreement": 0.41, "split": 0.085},
    "normalization": {"mean": 0.52, "std": 2.25},
    "prompts": {"asked": 20, "trained_on": 0},
}


def _write(url: Path, content: str) -> None:
    url.parent.mkdir(parents=True, exist_ok=True)
    url.write_text(content, encoding="utf-8")


def _rows(folder: Path, rows: list[dict[str, Any]], every: int) -> None:
    for start in range(0, len(rows), every):
        part = rows[start : start + every]
        _write(folder / "metrics" / f"step-{part[-1]['step']:08d}.jsonl", "".join(json.dumps(r) + "\n" for r in part))


def _seconds(scale: float, **parts: float) -> dict[str, float]:
    return {f"seconds_{name}": scale * value * random.uniform(0.9, 1.1) for name, value in parts.items()}


def _sft(folder: Path) -> None:
    rows = []
    for step in range(1, 76):
        seconds = _seconds(1.0, data=0.02, forward=1.1, backward=2.3, communication=0.01, optimizer=0.12)
        row = {
            "step": step,
            "loss": 2.6 + 1.5 * math.exp(-step / 12) + random.gauss(0, 0.07),
            "tokens_per_second": random.gauss(360, 15),
            "step_seconds": sum(seconds.values()),
            "grad_norm": 1.2 + random.expovariate(2),
            "learning_rate": 4e-4 * (1 - step / 76),
            "skipped": 0.0,
        } | seconds
        if step % 15 == 0:
            row["heldout_loss"] = 2.7 + 1.4 * math.exp(-step / 12)
        rows.append(row)
    _rows(folder, rows, 15)
    _write(
        folder / "state.json",
        json.dumps({"data": {"train": "a1" * 32, "heldout": "b2" * 32}, "parents": {}, "base": "c3" * 32}),
    )
    summary = {"kind": "sft", "metrics": {"heldout_loss": 2.702}, "registered": "reviews-sft@1", "sha256": "d4" * 32}
    _write(folder / "summary.json", json.dumps(summary))


def _reward(folder: Path) -> None:
    rows = [
        {
            "step": step,
            "loss": 0.28 + 0.42 * math.exp(-step / 15) + random.gauss(0, 0.04),
            "accuracy": min(1.0, 0.88 - 0.36 * math.exp(-step / 15) + random.gauss(0, 0.05)),
            "margin": 2.4 * (1 - math.exp(-step / 20)),
            "tokens_per_second": random.gauss(300, 15),
            "step_seconds": 5.0,
            "grad_norm": 2 + random.expovariate(1),
            "learning_rate": 4e-4,
        }
        | _seconds(1.3, data=0.02, forward=1.1, backward=2.3, communication=0.01, optimizer=0.12)
        for step in range(1, 64)
    ]
    _rows(folder, rows, 15)
    _write(folder / "state.json", json.dumps({"data": {"train": "e5" * 32}, "parents": {}}))
    _write(folder / "evaluations" / "reward.json", json.dumps(REWARD_REPORT))
    metrics = {"heldout_loss": 0.261, "heldout_accuracy": 0.905, "heldout_margin": 2.31}
    summary = {"kind": "reward", "metrics": metrics, "registered": "reviews-reward@1", "sha256": "f6" * 32}
    _write(folder / "summary.json", json.dumps(summary))


def _ppo(folder: Path) -> None:
    rows = []
    for step in range(1, 49):
        up = 1 - math.exp(-step / 14)
        rows.append(
            {
                "step": step,
                "reward": -0.05 + 1.6 * up + random.gauss(0, 0.09),
                "reward_std": 0.95 - 0.4 * up,
                "kl": 7.5 * up + random.gauss(0, 0.3),
                "kl_coef": 0.05,
                "entropy": 2.9 - 0.9 * up,
                "clipped": abs(random.gauss(0.03, 0.02)),
                "value_clipped": abs(random.gauss(0.12, 0.04)),
                "response_length": 24 + 4 * up + random.gauss(0, 0.8),
                "truncated": 0.04,
                "logprob_gap": abs(random.gauss(0.045, 0.002)),
                "logprob_gap_max": abs(random.gauss(0.36, 0.05)),
                "tokens": 1600.0,
                "policy_loss": random.gauss(0, 0.01),
                "value_loss": 0.4 * math.exp(-step / 10) + 0.1,
                "grad_norm": 0.4 + random.random() / 5,
                "sync_gap": abs(random.gauss(0.04, 0.005)),
            }
            | _seconds(1, sample=4.4, score=1.9, forward=5.2, advantages=0.02, update=9.5, sync=0.4, record=0.03)
        )
    _rows(folder, rows, 4)
    state = {
        "data": {"train": "07" * 32, "heldout": "18" * 32},
        "parents": {"reviews-sft@1": "d4" * 32, "reviews-reward@1": "f6" * 32},
    }
    _write(folder / "state.json", json.dumps(state))
    before = {"heldout_reward": -0.03, "heldout_reward_std": 0.97, "heldout_judge": 0.12, "heldout_distinct2": 0.91}
    after = {"heldout_reward": 1.48, "heldout_reward_std": 0.5, "heldout_judge": 0.66, "heldout_distinct2": 0.83}
    after |= {"heldout_kl": 7.31, "heldout_length": 27.8, "heldout_truncated": 0.02}
    for label, metrics in (("before", before), ("after", after)):
        _write(folder / "evaluations" / f"{label}.json", json.dumps(metrics))
        rise = label == "after"
        answers = [
            {
                "prompt": PROMPT.format(subject),
                "response": (
                    f"A wonderful, moving and beautifully acted story of {subject} that stays with you."
                    if rise
                    else f"The film about {subject} is slow, and its ending does not earn what came before."
                ),
                "reward": random.gauss(1.5 if rise else 0, 0.5),
                "judge": random.uniform(0.5, 0.9) if rise else random.uniform(-0.4, 0.3),
            }
            for subject in SUBJECTS
            for _ in range(4)
        ]
        answers[4]["response"] = HOSTILE
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers)
        _write(folder / "samples" / f"{label}.jsonl", text)
    summary = {"kind": "ppo", "metrics": after, "registered": "reviews-ppo@1", "sha256": "29" * 32}
    _write(folder / "summary.json", json.dumps(summary))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[[str], Path]:
    """Makes `runs/<name>` and gives its folder; the same numbers each time."""

    def make(name: str) -> Path:
        random.seed(0)
        run = tmp_path / "runs" / name
        _write(run / "recipe.yaml", RECIPE.replace("name: reviews", f"name: {name}"))
        for stage, fill in (("sft", _sft), ("reward", _reward), ("ppo", _ppo)):
            fill(run / "stages" / stage)
        return run

    return make
