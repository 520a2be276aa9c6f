"""The cells of the conformance table: which methods, what is trained by them, under which strategy."""

from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from triptych.methods.table import METHODS
from triptych.recipe import Method, Recipe
from triptych.recipe.method import PRESETS, parts_of
from triptych.recipe.rules import rule_faults

Strategy = Literal["single", "ddp", "fsdp", "zero2", "zero3"]
Task = Literal["language", "classification", "gradients", "bfloat16", "float16"]

HALF: tuple[Task, ...] = ("bfloat16", "float16")
SMOKE: tuple[Strategy, ...] = ("single", "fsdp")
STRATEGIES: tuple[Strategy, ...] = ("single", "ddp", "fsdp", "zero2", "zero3")

SETTINGS: dict[str, list[dict[str, Any]]] = {
    "bitfit": [{"name": "bitfit", "missing": "add"}],
    "lora, A fixed": [{"name": "lora", "r": 4, "freeze_a": True}],
    "lora, olora": [{"name": "lora", "r": 4, "init": "olora"}],
    "lora, patterns": [{"name": "lora", "r": 4, "layers": [1], "rank_pattern": {"q_proj": 2}, "rslora": True}],
    "pissa": [{"name": "pissa", "r": 4}],
    "miss": [{"name": "miss", "r": 8}],
    "vblora": [{"name": "vblora", "vector_length": 32}],
    "shira": [{"name": "shira", "r": 4}],
    "c3a": [{"name": "c3a", "block_size": 32}],
    "freeze": [{"name": "freeze", "layers": 1, "train": ["layers.0.self_attn.q_proj"], "tokens": [57, 64]}],
    **{preset: [{"name": preset}] for preset in PRESETS},
    "bitfit + lora": [{"name": "bitfit", "missing": "add"}, {"name": "lora", "r": 4}],
    "prefix_tuning + lora + pfeiffer": [{"name": "prefix_tuning"}, {"name": "lora", "r": 4}, {"name": "pfeiffer"}],
    "prompt_tuning + ia3 + houlsby": [{"name": "prompt_tuning"}, {"name": "ia3"}, {"name": "houlsby"}],
}
"""Case -> its method, or its parts, where the defaults are not what is tested; a method is a case under its name."""

RATES: dict[str, float] = {}
"""Case -> learning rate, where the upper end of the method's own range is not it."""

_METHOD: TypeAdapter[Method] = TypeAdapter(Method)


@dataclass(frozen=True)
class Cell:
    """One training, or one comparison."""

    case: str
    task: Task
    strategy: Strategy = "single"

    def __str__(self) -> str:
        return f"{self.case.replace(' + ', '+')}-{self.task}-{self.strategy}"


def cases() -> list[str]:
    """Every method, and hybrids."""
    return list(dict.fromkeys([*METHODS, *SETTINGS]))


def method_of(case: str) -> Method:
    """What a stage's `method` would be."""
    parts = SETTINGS.get(case, [{"name": case}])
    return _METHOD.validate_python(parts if len(parts) > 1 else parts[0])


def rate_of(case: str) -> float:
    """The learning rate of a case."""
    return RATES.get(case, min(METHODS[part.name].learning_rates[1] for part in parts_of(method_of(case))))


def refusal(cell: Cell, checkpointing: str = "none") -> str | None:
    """Why a recipe with this stage is refused; None: it is not."""
    head = {"labels": ["one", "two"]} if cell.task == "classification" else {}
    workers = {"strategy": cell.strategy, "count": 1 if cell.strategy == "single" else 2}
    stage = {
        "kind": "classification" if head else "sft",
        "method": method_of(cell.case),
        "data": {"train": {"path": "rows.jsonl"}},
        "train": {"epochs": 1, "workers": workers, "memory": {"checkpointing": checkpointing}},
        **head,
    }
    model = {"base": "tiny", "dtype": cell.task if cell.task in HALF else "float32"}
    recipe = Recipe.model_validate({"name": "table", "model": model, "stages": {"stage": stage}})
    return "; ".join(fault.message for fault in rule_faults(recipe)) or None


def all_cells() -> list[Cell]:
    """The whole table."""
    trained = [
        Cell(case, task, strategy)
        for case in cases()
        for task in ("language", "classification")
        for strategy in STRATEGIES
    ]
    return [
        *trained,
        *(Cell(case, "gradients") for case in cases()),
        *(Cell(case, dtype, strategy) for case in cases() for dtype in HALF for strategy in SMOKE),
    ]


def quick_cells() -> list[Cell]:
    """What `make test` runs of it: every method under one strategy or another, and its gradients in every layout."""
    found = []
    for number, case in enumerate(case for case in cases() if ", " not in case):
        task: Task = "classification" if number // len(STRATEGIES) % 2 else "language"
        cell = Cell(case, task, STRATEGIES[number % len(STRATEGIES)])
        found += [Cell(case, "language", cell.strategy) if refusal(cell) else cell, Cell(case, "gradients")]
    return found
