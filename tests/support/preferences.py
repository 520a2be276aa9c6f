"""Recipes of preference stages on the tiny model, few rows, and all rows in each step."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from triptych.recipe import Recipe, load_recipe

WORDS = ("warm", "dull", "funny", "flat")
PAIRS = [
    {"prompt": f"Film {i}?", "chosen": "It is warm.", "rejected": f"It is {WORDS[i % 3 + 1]} {'and long ' * (i % 3)}."}
    for i in range(6)
]
ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": f"Film {i}?", "response": f"It is {WORDS[i % 4]}."} for i in range(6)],
    "dpo": PAIRS,
    "reward": PAIRS,
    "kto": [
        {"prompt": f"Film {i}?", "completion": f"It is {WORDS[i % 2]} {'and long ' * (i % 3)}.", "label": i % 2 == 0}
        for i in range(6)
    ],
    "rrhf": [
        {
            "prompt": f"Film {i}?",
            "answers": [f"It is {word}." for word in WORDS[: 2 + i % 3]],
            "ranks": [2, 1, 2, 3][: 2 + i % 3],
        }
        for i in range(6)
    ],
}
LORA = {"name": "lora", "r": 4, "targets": ["q_proj", "v_proj"]}


def stage(folder: Path, kind: str, **fields: Any) -> dict[str, Any]:
    """Four steps, each on all rows, with a checkpoint and a measurement every two; held-out rows are the same."""
    path = folder / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS[kind]))
    return {
        "kind": kind,
        "data": {"train": {"path": str(path)}, "heldout": {"path": str(path)}},
        "train": {
            "steps": 4,
            "optimizer": {"lr": 0.01},
            "batch": {"rows": len(ROWS[kind]), "micro_tokens": 256, "max_length": 128},
            "checkpoint_every": 2,
            "evaluate_every": 2,
        },
        **fields,
    }


def recipe(folder: Path, base: Path, name: str = "tiny", **stages: Mapping[str, Any]) -> Recipe:
    """The stages, in float32."""
    path = folder / f"{name}.yaml"
    model = {"base": str(base), "dtype": "float32"}
    fields = {"name": name, "model": model, "storage": {"runs": str(folder / "runs")}, "stages": stages}
    path.write_text(yaml.safe_dump(fields))
    return load_recipe(path)
