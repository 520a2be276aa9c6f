"""What reinforcement learning with verifiers gains: a task of reasoning-gym, and the form of gsm8k's answers.

    python tests/bench/reasoning.py [--only task format] [--steps N] [--out build/bench/reasoning.json]

Runs the recipes of examples/reasoning from their data on, and prints for base, SFT and RL the share of sampled answers
that are right, and that have the form, on held-out prompts, each with its standard error over prompts. Folders of runs
stay in build/bench/reasoning, where a run that was stopped goes on.
"""

import argparse
import json
import math
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml
from rich.console import Console
from rich.table import Table

from command import triptych
from harness import machine
from training import ROOT
from triptych.data.answers import final_number, same_text

EXAMPLE = ROOT / "examples" / "reasoning"
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k"
RUNS = ROOT / "build" / "bench" / "reasoning"
TASK = ("needle_haystack", "--set", "min_num_statements=3", "--set", "max_num_statements=5")
FORM = re.compile(r"(?s).*#### -?[\d,]+")
FORM_REQUEST = "End with `#### ` and the number."
RECIPES = {"task": ("recipe.yaml", "task"), "format": ("format.yaml", "gsm8k")}
"""Name -> recipe, and the set of its evaluation."""
MODELS = ("base", "sft", "rl")
Judge = Callable[[str, Sequence[str]], bool]
"""Whether an answer counts, given the right ones."""
FIGURES: dict[str, dict[str, Judge]] = {
    "task": {"right": lambda answer, right: any(same_text(answer, one) for one in right)},
    "format": {
        "in the form": lambda answer, right: FORM.fullmatch(answer) is not None,
        "right": lambda answer, right: final_number(answer) in {final_number(one) for one in right},
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument("--steps", type=int, help="steps of rl, in place of the recipe's")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "reasoning.json")
    options = parser.parse_args()
    found = {}
    for name in options.only:
        {"task": prepare_task, "format": prepare_gsm8k}[name]()
        found[name] = measure(name, options.steps)
    show(found)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"machine": machine(), "found": found}, indent=1) + "\n")


def prepare_task() -> None:
    """Rows of the task."""
    if not (EXAMPLE / "data" / "train.jsonl").exists():
        counts = ("--train", "1000", "--heldout", "200")
        words = ("data", "reasoning-gym", *TASK, "--out", str(EXAMPLE / "data"), *counts)
        triptych(*words, log=RUNS / "data.log")


def prepare_gsm8k() -> None:
    """Solutions to imitate, prompts to answer, and held-out questions with their numbers."""
    folder = EXAMPLE / "data"
    folder.mkdir(parents=True, exist_ok=True)
    rows = {split: list(map(json.loads, (GSM8K / f"{split}.jsonl").open())) for split in ("train", "test")}
    solved = [{"prompt": _asked(row), "response": row["answer"]} for row in rows["train"][:200]]
    prompts = [{"prompt": _asked(row), "answer": row["answer"]} for row in rows["train"][200:]]
    heldout = [{"prompt": _asked(row), "answer": row["answer"].rpartition("#### ")[2]} for row in rows["test"]]
    for name, some in {"train": solved, "prompts": prompts, "heldout": heldout}.items():
        (folder / f"gsm8k.{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))


def _asked(row: dict[str, str]) -> str:
    return f"{row['question']}\n{FORM_REQUEST}"


def measure(name: str, steps: int | None) -> dict[str, Any]:
    """Run the recipe; the shares of each model's answers, and the seconds and steps of rl."""
    recipe, rows = RECIPES[name]
    more = [] if steps is None else ["--set", f"stages.rl.train.steps={steps}"]
    started = time.monotonic()
    words = ("run", str(EXAMPLE / recipe), "--set", f"storage.runs={RUNS}", *more)
    triptych(*words, log=RUNS / f"{name}.log")
    stages = RUNS / yaml.safe_load((EXAMPLE / recipe).read_text())["name"] / "stages"
    log = [json.loads(line) for file in sorted((stages / "rl" / "metrics").glob("*.jsonl")) for line in file.open()]
    spent = [sum(value for key, value in step.items() if key.startswith("seconds_")) for step in log]
    models = {ref: shares(name, stages / "compare" / "artifact" / f"{rows}.parquet", ref) for ref in MODELS}
    times = {"rl_steps": len(log), "rl_minutes": sum(spent) / 60, "all_minutes": (time.monotonic() - started) / 60}
    return {"models": models, **times}


def shares(name: str, path: Path, ref: str) -> dict[str, tuple[float, float]]:
    """Share of a model's answers that count, and its standard error over prompts, by figure."""
    rows = [row for row in pq.read_table(path).to_pylist() if row["model"] == ref]
    found = {}
    for figure, judge in FIGURES[name].items():
        means = [statistics.fmean(judge(answer, row["right"]) for answer in row["answer"]) for row in rows]
        found[figure] = statistics.fmean(means), statistics.stdev(means) / math.sqrt(len(means))
    return found


def show(found: dict[str, Any]) -> None:
    """Print a table, and the machine."""
    table = Table("", "of sampled answers", *MODELS, "rl")
    for name, one in found.items():
        for figure in FIGURES[name]:
            cells = [f"{100 * value:.1f} ± {100 * error:.1f} %" for value, error in _cells(one, figure)]
            table.add_row(name, figure, *cells, f"{one['rl_steps']} steps, {one['rl_minutes']:.1f} min")
    console = Console()
    console.print(table)
    console.print(json.dumps(machine()))


def _cells(one: dict[str, Any], figure: str) -> list[tuple[float, float]]:
    return [one["models"][ref][figure] for ref in MODELS]


if __name__ == "__main__":
    main()
