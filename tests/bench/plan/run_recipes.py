"""Recipes whose runs are measured whole: every stage kind, with methods and batches that differ in memory."""

from typing import Any

Json = dict[str, Any]
STEPS = 4


def stage(kind: str, rows: str, method: Json, batch: Json, **more: Any) -> Json:
    """A supervised stage of four steps that is measured twice and writes checkpoints."""
    data = {part: {"path": f"{rows}.{part}.jsonl"} for part in ("train", "heldout")}
    train = {"steps": STEPS, "batch": batch, "evaluate_every": 2, "checkpoint_every": 2} | more.pop("train", {})
    return {"kind": kind, "method": method, "data": data, "train": train, **more}


def lora(r: int, **more: Any) -> Json:
    return {"name": "lora", "r": r, **more}


def batch(rows: int, micro_tokens: int, max_length: int) -> Json:
    return {"rows": rows, "micro_tokens": micro_tokens, "max_length": max_length}


LORA16, SMALL, WIDE = lora(16), batch(4, 512, 256), batch(10, 2048, 512)
QUESTIONS = ("question_answering", "questions")
LABELS = {"texts": {"labels": ["small", "large"]}, "tags": {"labels": ["WORD", "NUM"]}}


def rl(rows: Json, sync: str, tokens: int) -> dict[str, Json]:
    """SFT, a reward model, and three steps of PPO from both."""
    return {
        "sft": stage("sft", "sft", LORA16, rows),
        "reward": stage("reward", "pairs", LORA16, rows),
        "ppo": {
            "kind": "rl",
            "policy": "sft",
            "rewards": [{"name": "model", "stage": "reward"}],
            "data": {part: {"path": f"prompts.{part}.jsonl", "limit": 16} for part in ("train", "heldout")},
            "train": {"steps": 3, "batch": {"micro_tokens": 1024}},
            "rollout": {
                "prompts_per_step": 4,
                "samples_per_prompt": 2,
                "max_prompt_tokens": 192,
                "engines": 1,
                "sync": sync,
                "sampling": {"max_new_tokens": tokens},
            },
            "evaluation": {"max_new_tokens": tokens},
        },
    }


def alone(made: Json) -> dict[str, Json]:
    return {made["kind"]: made}


RUNS: dict[str, tuple[str, dict[str, Json]]] = {
    "sft lora": ("float32", alone(stage("sft", "sft", LORA16, SMALL))),
    "sft lora wide": ("float32", alone(stage("sft", "sft", LORA16, WIDE))),
    "sft lora checkpointing": (
        "float32",
        alone(stage("sft", "sft", LORA16, WIDE, train={"memory": {"checkpointing": "full"}})),
    ),
    "sft full": ("float32", alone(stage("sft", "sft", {"name": "full"}, SMALL))),
    "sft freeze": ("float32", alone(stage("sft", "sft", {"name": "freeze", "layers": 4}, SMALL))),
    "sft dora": ("float32", alone(stage("sft", "sft", {"name": "dora", "r": 16}, SMALL))),
    "sft pissa": ("float32", alone(stage("sft", "sft", {"name": "pissa", "r": 32}, SMALL))),
    "sft adalora": ("float32", alone(stage("sft", "sft", {"name": "adalora"}, SMALL))),
    "sft p-tuning v2": ("float32", alone(stage("sft", "sft", {"name": "p_tuning_v2"}, SMALL))),
    "sft prompt": ("float32", alone(stage("sft", "sft", {"name": "prompt_tuning"}, SMALL))),
    "sft norms": ("float32", alone(stage("sft", "sft", {"name": "ln_tuning"}, SMALL))),
    "reward lora": ("float32", alone(stage("reward", "pairs", LORA16, SMALL))),
    "reward lora wide": ("float32", alone(stage("reward", "pairs", LORA16, WIDE))),
    "classes lora": ("float32", alone(stage("classification", "texts", LORA16, SMALL, **LABELS["texts"]))),
    "classes wide": ("float32", alone(stage("classification", "texts", lora(64), WIDE, **LABELS["texts"]))),
    "classes p-tuning v2": (
        "float32",
        alone(stage("classification", "texts", {"name": "p_tuning_v2"}, SMALL, **LABELS["texts"])),
    ),
    "tags lora": ("float32", alone(stage("token_classification", "tags", LORA16, SMALL, **LABELS["tags"]))),
    "questions lora": ("float32", alone(stage(*QUESTIONS, LORA16, SMALL))),
    "rl merged": ("float32", rl(SMALL, "merged", 64)),
    "rl adapter": ("float32", rl(WIDE, "adapter", 96)),
}
"""Name -> precision, and the stages; of SmolLM2-135M. In bfloat16, where it is emulated, each would take an hour."""
