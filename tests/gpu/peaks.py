"""Peak memory of a full micro-batch on a GPU against what `plan` says before anything runs."""

import itertools
import json
import random
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from result import Figures, Result, Verdict, attempt
from shapes import METHODS, OBJECTIVE, Setup, Shape, batches_of, make_learner, make_model, random_row
from triptych.plan import estimate
from triptych.recipe import Recipe
from triptych.train.usage import peak_memory

PART = "peaks"
ROWS = 8
CASES: list[tuple[str, dict[str, Any]]] = [
    ("lora", {"checkpointing": "none", "loss_chunk": 512}),
    ("lora", {"checkpointing": "selective", "loss_chunk": 512}),
    ("lora", {"checkpointing": "full", "loss_chunk": 512}),
    ("lora", {"checkpointing": "none", "loss_chunk": None}),
    ("full", {"checkpointing": "none", "loss_chunk": 512}),
    ("full", {"checkpointing": "full", "loss_chunk": 512}),
]


def measured(shape: Shape, device: torch.device, method: str, levers: dict[str, Any]) -> int:
    """Bytes of tensors at the peak of two steps of one micro-batch of the longest rows, all of them learned."""
    learner = make_learner(make_model(shape, METHODS[method], device, torch.bfloat16, **levers))
    chance = random.Random(0)
    batches = batches_of([random_row(shape, shape.longest, 0, chance) for _ in range(ROWS)], 1 << 30)
    for _ in range(2):  # the optimizer's state comes with the first
        learner.step(OBJECTIVE, batches)
    return peak_memory(device)


def predicted(shape: Shape, method: str, levers: dict[str, Any], gpus: int) -> tuple[int, int, int]:
    """Bytes, low, expected and high, without those of the process and its libraries."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "config.json").write_text(json.dumps(shape.config))
        stage = {
            "kind": "sft",
            "method": METHODS[method].model_dump(),
            "data": {"train": {"path": "rows.jsonl"}},
            "train": {
                "steps": 1,
                "batch": {"rows": ROWS, "max_length": shape.longest, "micro_tokens": ROWS * shape.longest},
                "memory": levers,
                "workers": {"gpus": gpus},
            },
        }
        recipe = Recipe.model_validate({"name": "memory", "model": {"base": folder}, "stages": {"sft": stage}})
        parts = estimate(recipe, machine="local").stages["sft"].roles["policy"].parts
    amounts = [amount for part, amount in parts.items() if part != "runtime"]
    return sum(one.low for one in amounts), sum(one.expected for one in amounts), sum(one.high for one in amounts)


def compare(shape: Shape, device: torch.device, method: str, levers: dict[str, Any]) -> tuple[Verdict, Figures]:
    on_gpu = device.type == "cuda"
    figures: Figures = {}
    peak = measured(shape, device, method, levers)  # on a CPU the interpreter's memory is in it, so it says nothing
    if on_gpu:
        figures["peak GB"] = peak / 1e9
    low, expected, high = predicted(shape, method, levers, int(on_gpu))
    figures |= {"plan GB": f"{expected / 1e9:.2f} ({low / 1e9:.2f} - {high / 1e9:.2f})"}
    if on_gpu:
        figures |= {"peak / plan": peak / expected, "in the interval": "yes" if low <= peak <= high else "no"}
    return "measured", figures


def check(setup: Setup) -> Iterator[Result]:
    for shape, (method, levers) in itertools.product(setup.shapes, CASES):
        chunk = levers["loss_chunk"] or "all"
        case = f"{shape.name}, {method}, checkpointing {levers['checkpointing']}, {chunk} logits at once"
        yield attempt(PART, case, partial(compare, shape, setup.device, method, levers))
