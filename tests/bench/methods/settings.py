"""The methods of the table as a recipe names them, and the learning rates that each is tried with."""

import math
from typing import Any

LEVELS = 3
"""Learning rates of each method: the least and the greatest of its range, and the geometric mean of the two."""
HEAD_RATE = 5e-4
"""Learning rate of the head, and of a method that has none of its own."""

Part = dict[str, Any]

FIRST = (
    "full",
    "lora",
    "adalora",
    "p_tuning_v2",
    "prefix_tuning",
    "prompt_tuning",
    "p_tuning",
    "pfeiffer",
    "houlsby",
    "bitfit",
    "dora",
    "ia3",
)
"""These come first, in this order; all others of the table of methods follow."""
HYBRIDS: dict[str, list[Part]] = {"lora + p_tuning_v2": [{"name": "lora"}, {"name": "p_tuning_v2"}]}
EXTRAS: dict[str, Part] = {
    "bitfit": {"missing": "add"},  # the model has no biases
    "freeze": {"layers": 4},
    "vblora": {"vector_length": 192},  # must divide its widths
}
"""What a method needs beside its name; all else is left to its defaults."""


def method_names() -> list[str]:
    """The rows of the table."""
    from triptych.methods import METHODS

    known = [name for name in FIRST if name in METHODS]
    return [*known, *HYBRIDS, *(name for name in METHODS if name not in known)]


def method_at(name: str, level: int) -> tuple[Any, float]:
    """The method with the learning rates of a level, as a recipe holds it, and the stage's own learning rate."""
    from triptych.methods import METHODS

    parts = [{**part, **EXTRAS.get(part["name"], {})} for part in HYBRIDS.get(name, [{"name": name}])]
    rate = HEAD_RATE
    for part in parts:
        entry = METHODS[part["name"]]
        own = rate_at(entry.learning_rates, level)
        if "lr" in entry.config.model_fields:
            part["lr"] = own
        else:
            rate = own
    return (parts if name in HYBRIDS else parts[0]), rate


def rate_at(bounds: tuple[float, float], level: int) -> float:
    """One of LEVELS rates between the bounds, to three digits."""
    low, high = map(math.log, bounds)
    return float(f"{math.exp(low + (high - low) * level / (LEVELS - 1)):.3g}")
