"""The recipes of the comparison: one start for all, and one run an algorithm and seed."""

from typing import Any

from training import REVIEWS

MODEL = {"base": "smollm2-135m-instruct", "dtype": "float32"}
START = "learning-start"
"""Name of the run that registers the policy and the reward model which all others start from."""
MINUTES = 6.0
"""Time that an algorithm gets on a quiet machine."""
PACES = {"ppo": 84.6, "grpo": 45.8, "rloo": 45.8, "reinforce_pp": 45.8, "dpo": 9.3, "rrhf": 18.2}
"""Seconds of a step, measured on two cores of an AMD EPYC without bfloat16 instructions that did nothing else.

Steps follow from them and not from a clock, so that a cell is the same on every machine and beside other work. RLOO and
REINFORCE++ do per step what GRPO does.
"""
PREFERENCES = ("dpo", "rrhf")
LEARNING_RATE = 3e-4
SAMPLING = {"max_new_tokens": 48, "temperature": 1.0}


def steps_of(algorithm: str) -> int:
    """Optimiser steps of a preference stage, or steps of reinforcement learning, that the time has room for."""
    return round(60 * MINUTES / PACES[algorithm])


def start() -> dict[str, Any]:
    """The SFT policy and the reward model of the film-review example."""
    train = {
        "epochs": 1,
        "optimizer": {"lr": 4e-4, "schedule": "linear", "warmup": 0.05},
        "batch": {"rows": 16, "micro_tokens": 1024, "max_length": 96},
    }
    lora = {"name": "lora", "r": 16, "alpha": 32}
    sft = {"kind": "sft", "method": lora, "data": _rows("sft.train", limit=1000), "train": train}
    reward = {"kind": "reward", "method": lora, "data": _rows("pairs.train", limit=640), "train": train}
    return _recipe(START, 0, {"sft": sft, "reward": reward, "compare": _compare("reward", "sft")})


def learning(algorithm: str, seed: int) -> dict[str, Any]:
    """One algorithm from the start, then answers of what came out."""
    stage = _preference(algorithm) if algorithm in PREFERENCES else _reinforcement(algorithm)
    compare = _compare(f"{START}-reward@1", "learned")
    return _recipe(f"learning-{algorithm.replace('_', '-')}-{seed}", seed, {"learned": stage, "compare": compare})


def _recipe(name: str, seed: int, stages: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "seed": seed, "model": MODEL, "stages": stages}


def _rows(name: str, **more: Any) -> dict[str, Any]:
    return {"train": {"path": str(REVIEWS / "data" / f"{name}.jsonl"), **more}}


def _preference(kind: str) -> dict[str, Any]:
    """DPO and RRHF on the pairs that the reward model learned from: a pair is a ranking of two."""
    return {
        "kind": kind,
        "from": f"{START}-sft@1",
        "data": _rows("pairs.train", limit=640),
        "train": {
            "steps": steps_of(kind),
            "optimizer": {"lr": LEARNING_RATE},
            "batch": {"rows": 16, "micro_tokens": 1024, "max_length": 96},
        },
    }


def _reinforcement(algorithm: str) -> dict[str, Any]:
    """Steps of 16 prompts with 4 answers each."""
    return {
        "kind": "rl",
        "policy": f"{START}-sft@1",
        "algorithm": {"name": algorithm},
        "rewards": [{"name": "model", "stage": f"{START}-reward@1"}],
        "data": _rows("prompts.train"),
        "train": {
            "steps": steps_of(algorithm),
            "optimizer": {"lr": LEARNING_RATE},
            "batch": {"minibatches": 2, "micro_tokens": 1024},
        },
        "rollout": {
            "prompts_per_step": 16,
            "samples_per_prompt": 4,
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
        "sets": {"films": films},
        "compute": {"batch": {"micro_tokens": 1024, "max_length": 96}},
        "rollout": {"max_prompt_tokens": 48, "engines": 2, "samples_per_prompt": 16, "sampling": SAMPLING},
    }
