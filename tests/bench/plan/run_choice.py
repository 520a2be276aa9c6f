"""The setting that `plan` chooses under a memory cap beside the best that there is, found by trying all of them.

    PYTHONPATH=tests/bench .venv/bin/python -m plan.run_choice [--recipes 10] [--out FILE]

Ten trainings of SmolLM2-135M, each with a cap that some settings of micro-batch and checkpointing exceed. Every
setting takes two steps in a fresh process that the kernel gives no more memory than the cap. Targets: what was chosen
never runs out, and is within 10% of the fastest that did not. About half an hour; it goes on where it was stopped.
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import machine
from triptych.plan import Known, choose, local, options
from triptych.plan.levers import Levers, Pulled
from triptych.plan.rates import kept_rates
from triptych.recipe import Recipe
from triptych.stages.machine_speed import measure_apart
from triptych.stages.probe import attempt

PULLED: tuple[Pulled, ...] = ("micro_tokens", "checkpointing")
TARGET = 0.9
CASES: tuple[tuple[Any, str, str, int], ...] = (
    ({"name": "lora", "r": 8}, "bfloat16", "2GB", 256),
    ({"name": "lora", "r": 8}, "bfloat16", "3GB", 512),
    ({"name": "lora", "r": 64}, "float32", "3GB", 256),
    ({"name": "lora", "r": 16, "targets": ["q_proj", "v_proj"]}, "bfloat16", "2GB", 512),
    ({"name": "full"}, "bfloat16", "5GB", 256),
    ({"name": "full"}, "float32", "5GB", 256),
    ({"name": "dora", "r": 16}, "bfloat16", "3GB", 256),
    ({"name": "ia3"}, "bfloat16", "2GB", 256),
    ({"name": "p_tuning_v2", "num_virtual_tokens": 64}, "bfloat16", "2GB", 256),
    ({"name": "ln_tuning"}, "bfloat16", "2GB", 256),
)
"""Method, precision, cap, longest row."""


def recipe_of(method: Any, dtype: str, memory: str, length: int) -> Recipe:
    train = {"steps": 10, "batch": {"rows": 8, "max_length": length}}
    stage = {"kind": "sft", "method": method, "data": {"train": {"path": "rows.jsonl"}}, "train": train}
    model = {"base": "smollm2-135m-instruct", "dtype": dtype}
    return Recipe.model_validate({"name": "choice", "memory": memory, "model": model, "stages": {"sft": stage}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=len(CASES))
    parser.add_argument("--out", type=Path, default=Path("build/bench/plan-choice.json"))
    given = parser.parse_args()
    rates = kept_rates() or measure_apart()
    done: dict[str, dict[str, Any]] = json.loads(given.out.read_text())["tries"] if given.out.is_file() else {}
    table = Table("recipe", "chosen", "tokens/s", "best by trying", "tokens/s", "ratio", title="Chosen under a cap")
    met = True
    for case in CASES[: given.recipes]:
        recipe, name = recipe_of(*case), json.dumps(case)
        tries = done.setdefault(name, {})
        for option in options(recipe, "sft", local(), known=Known(rates), levers=PULLED):
            key = str(option.levers)
            if key not in tries:
                tries[key] = asdict(attempt(recipe, "sft", option.levers))
                given.out.parent.mkdir(parents=True, exist_ok=True)
                given.out.write_text(json.dumps({"machine": machine(), "tries": done}, indent=2) + "\n")
        met &= add(
            table,
            case,
            choose(recipe, "sft", local(), known=Known(rates), levers=PULLED, exact=True).best.levers,
            tries,
        )
    Console().print(table, f"within {1 - TARGET:.0%} everywhere, never out of memory: {'met' if met else 'MISSED'}")


def add(table: Table, case: tuple[Any, str, str, int], chosen: Levers, tries: dict[str, Any]) -> bool:
    """Whether the target is met."""
    best = max(tries, key=lambda key: tries[key]["tokens_per_second"])
    speeds = [tries[key]["tokens_per_second"] for key in (str(chosen), best)]
    method, dtype, memory, length = case
    words = f"{method['name']}, {dtype}, {memory}, rows of {length}"
    ratio = speeds[0] / speeds[1] if speeds[1] else 0.0
    outcome = f"{speeds[0]:,.0f}" if tries[str(chosen)]["fits"] else "out of memory"
    table.add_row(words, str(chosen), outcome, best, f"{speeds[1]:,.0f}", f"{ratio:.2f}")
    return ratio >= TARGET


if __name__ == "__main__":
    main()
