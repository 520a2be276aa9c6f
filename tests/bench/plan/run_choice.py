"""The setting that `plan` chooses under a memory cap beside the best that there is, found by trying all of them.

    PYTHONPATH=tests/bench .venv/bin/python -m plan.run_choice [--recipes 10] [--out FILE]

Ten trainings of SmolLM2-135M, each with a cap that some settings of micro-batch and checkpointing exceed. Every
setting takes two steps in a fresh process that the kernel gives no more memory than the cap. Targets: what was chosen
never runs out, and is within 10% of the fastest that did not; both are tried three to seven times, in turn. About an
hour on a quiet machine; it goes on where it was stopped.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from harness import machine
from triptych.cli.plan import WORKER_MODULES
from triptych.measure import traced
from triptych.measure.machine_speed import measure_apart
from triptych.measure.probe import attempt
from triptych.plan import MachineProfile, choose, local, options
from triptych.plan.rates import kept_rates
from triptych.plan.settings import SettingName, Settings
from triptych.recipe import Recipe

VARIED: tuple[SettingName, ...] = ("micro_tokens", "checkpointing")
TARGET = 0.9
LEAST, MOST = 3, 7
"""Tries of the chosen setting and of the best; more than the least where another seems faster than the chosen one."""
Tries = dict[str, dict[str, list[Any]]]
"""Recipe -> setting -> tries."""
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


@dataclass(frozen=True)
class Outcome:
    """What was chosen for one recipe beside the best of all tries."""

    chosen: str
    fits: bool
    best: str
    speeds: tuple[float, float]
    """Tokens/s of both, the median of their tries."""
    spread: tuple[float, float]
    """Least and most of the ratio, pair by pair."""

    @property
    def ratio(self) -> float:
        return self.speeds[0] / self.speeds[1] if self.speeds[1] else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", type=int, default=len(CASES))
    parser.add_argument("--out", type=Path, default=Path("build/bench/plan-choice.json"))
    given = parser.parse_args()
    rates = kept_rates() or measure_apart()
    done: Tries = json.loads(given.out.read_text())["tries"] if given.out.is_file() else {}
    outcomes: dict[str, Outcome] = {}

    def keep() -> None:
        given.out.parent.mkdir(parents=True, exist_ok=True)
        chosen = {name: asdict(outcome) | {"ratio": outcome.ratio} for name, outcome in outcomes.items()}
        given.out.write_text(json.dumps({"machine": machine(), "tries": done, "chosen": chosen}) + "\n")

    for case in CASES[: given.recipes]:
        recipe, name = recipe_of(*case), json.dumps(case)
        tries = done.setdefault(name, {})
        found = options(recipe, "sft", local(), profile=MachineProfile(rates), vary=VARIED)
        choice = choose(
            recipe, "sft", local(), profile=MachineProfile(rates), vary=VARIED, exact=True, trace=traced
        ).best.settings
        for settings in (option.settings for option in found):
            try_it(recipe, settings, tries, 1, keep)
        for count in range(2, MOST + 1):  # in turn; one try alone may be a bad moment of the machine
            best = best_of(tries, choice)
            if best == str(choice) and count > LEAST:
                break
            for settings in (option.settings for option in found if str(option.settings) in {str(choice), best}):
                try_it(recipe, settings, tries, count, keep)
        outcomes[name] = beside(str(choice), best_of(tries, choice), tries)
        keep()
    show(outcomes)


def try_it(
    recipe: Recipe, settings: Settings, tries: dict[str, list[Any]], count: int, keep: Callable[[], None]
) -> None:
    """Up to so many tries of a setting in all."""
    made = tries.setdefault(str(settings), [])
    while len(made) < count:
        made.append(asdict(attempt(recipe, "sft", settings, WORKER_MODULES)))
        keep()


def speed_of(made: list[Any]) -> float:
    """The median; 0 where it ran out of memory in any."""
    speeds = [one["tokens_per_second"] for one in made]
    return median(speeds) if all(speeds) else 0.0


def best_of(tries: dict[str, list[Any]], chosen: Settings) -> str:
    """The fastest, the chosen one among equals."""
    return max(tries, key=lambda key: (speed_of(tries[key]), key == str(chosen)))


def beside(chosen: str, best: str, tries: dict[str, list[Any]]) -> Outcome:
    ours, theirs = tries[chosen], tries[best]
    pairs = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in zip(ours, theirs, strict=False)]
    fits = all(one["fits"] for one in ours)
    return Outcome(chosen, fits, best, (speed_of(ours), speed_of(theirs)), (min(pairs), max(pairs)))


def show(outcomes: dict[str, Outcome]) -> None:
    columns = ("recipe", "chosen", "tokens/s", "best by trying", "tokens/s", "ratio", "spread")
    table = Table(*columns, title="Chosen under a cap: micro_tokens, checkpointing")
    for name, found in outcomes.items():
        method, dtype, memory, length = json.loads(name)
        words = f"{method['name']}, {dtype}, {memory}, rows of {length}"
        chosen, best = (f"{speed:,.0f}" for speed in found.speeds)
        speed, spread = chosen if found.fits else "out of memory", "{:.2f}-{:.2f}".format(*found.spread)
        table.add_row(words, shown(found.chosen), speed, shown(found.best), best, f"{found.ratio:.2f}", spread)
    met = all(found.ratio >= TARGET for found in outcomes.values())
    Console().print(table, f"within {1 - TARGET:.0%} everywhere, never out of memory: {'met' if met else 'MISSED'}")


def shown(setting: str) -> str:
    """What differs between settings."""
    return ", ".join(part.split()[-1] for part in setting.split(", ")[: len(VARIED)])


if __name__ == "__main__":
    main()
