"""The recipes of the comparison: one start for all, and one run an algorithm and seed."""

from typing import Any

from learning.settings import LEARNING_RATE, MINUTES, PREFERENCES, ROWS, SAMPLES, steps_of
from training import REVIEWS

MODEL = {"base": "smollm2-135m-instruct", "dtype": "float32"}
START = "learning-start"
"""Name of the run that registers the policy and the reward model which all others start from."""
STAGE, COMPARE, SET = "learned", "compare", "films"
"""Names of the stage that learns, of the evaluation behind it, and of its set."""
SAMPLING = {"max_new_tokens": 48, "temperature": 1.0}
LENGTHS = {"rows": ROWS, "micro_tokens": 1024, "max_length": 96}


def start() -> dict[str, Any]:
    """The SFT policy and the reward model of the film-review example."""
    train = {"epochs": 1, "optimizer": {"lr": 4e-4, "schedule": "linear", "warmup": 0.05}, "batch": LENGTHS}
    lora = {"name": "lora", "r": 16, "alpha": 32}
    sft = {"kind": "sft", "method": lora, "data": _rows("sft.train", limit=1000), "train": train}
    reward = {"kind": "reward", "method": lora, "data": _rows("pairs.train", limit=640), "train": train}
    return _recipe(START, 0, {"sft": sft, "reward": reward, COMPARE: _compare("reward", "sft")})


def learning(algorithm: str, seed: int, minutes: float = MINUTES) -> dict[str, Any]:
    """One algorithm from the start, then answers of what came out."""
    length = "" if minutes == MINUTES else f"-{minutes:g}min"
    stages = {STAGE: _stage(algorithm, steps_of(algorithm, minutes)), COMPARE: _compare(f"{START}-reward@1", STAGE)}
    return _recipe(f"learning-{_dashed(algorithm)}-{seed}{length}", seed, stages)


def pacing(algorithm: str, steps: int) -> dict[str, Any]:
    """A few steps of an algorithm from the start, which nothing evaluates."""
    return _recipe(f"learning-pace-{_dashed(algorithm)}", 0, {STAGE: _stage(algorithm, steps)})


def _dashed(algorithm: str) -> str:
    return algorithm.replace("_", "-")


def _recipe(name: str, seed: int, stages: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "seed": seed, "model": MODEL, "stages": stages}


def _rows(name: str, **more: Any) -> dict[str, Any]:
    return {"train": {"path": str(REVIEWS / "data" / f"{name}.jsonl"), **more}}


def _stage(algorithm: str, steps: int) -> dict[str, Any]:
    return _preference(algorithm, steps) if algorithm in PREFERENCES else _reinforcement(algorithm, steps)


def _preference(kind: str, steps: int) -> dict[str, Any]:
    """DPO and RRHF on the pairs that the reward model learned from: a pair is a ranking of two."""
    return {
        "kind": kind,
        "from": f"{START}-sft@1",
        "data": _rows("pairs.train", limit=640),
        "train": {"steps": steps, "optimizer": {"lr": LEARNING_RATE}, "batch": LENGTHS},
    }


def _reinforcement(algorithm: str, steps: int) -> dict[str, Any]:
    """Steps of 16 prompts with 4 answers each."""
    return {
        "kind": "rl",
        "policy": f"{START}-sft@1",
        "algorithm": {"name": algorithm},
        "rewards": [{"name": "model", "stage": f"{START}-reward@1"}],
        "data": _rows("prompts.train"),
        "train": {
            "steps": steps,
            "optimizer": {"lr": LEARNING_RATE},
            "batch": {"minibatches": 2, "micro_tokens": 1024},
        },
        "rollout": {
            "prompts_per_step": ROWS,
            "samples_per_prompt": SAMPLES,
            "max_prompt_tokens": 48,
            "engines": 2,
            "sampling": SAMPLING,
        },
    }


def _compare(reward: str, model: str) -> dict[str, Any]:
    """16 answers to each held-out request, scored by the reward model."""
    films = {
        "data": {"path": str(REVIEWS / "data" / "prompts.heldout.jsonl")},
        "measure": {"name": "judge", "reward": reward},
    }
    return {
        "kind": "evaluation",
        "models": [model],
        "sets": {SET: films},
        "compute": {"batch": {"micro_tokens": 1024, "max_length": 96}},
        "rollout": {"max_prompt_tokens": 48, "engines": 2, "samples_per_prompt": 16, "sampling": SAMPLING},
    }
