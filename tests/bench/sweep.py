"""A sweep's wall time, peak memory and best dev accuracy: 12 LoRA trials on SST-2, 1,000 rows, one epoch.

    python tests/bench/sweep.py [--trials 12] [--rows 1000] [--arms plain asha shared] [--out build/bench/sweep]

`plain` is Ray Tune as it comes: one trial at a time, on both cores, each to its end. `asha` stops trials early, and
runs as many side by side as the plan has room for; `shared` does so on one copy of the base. All draw the same points.
Trials are compared by their loss on 200 rows of the dev set; the accuracy is the best trial's, on the whole of it,
outside the clock.
An arm that is done is not run again: remove its file in `--out` for that.
"""

import argparse
import json
import math
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table

from classification import LABELS, rows, write
from harness import Arm, Figures, emit, machine, run_arm

STAGE = "classifier"
COMPARED = 200
"""Rows of the dev set that trials are compared on."""
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {"scheduler": "none", "concurrency": 1},
    "asha": {"scheduler": "asha", "asha": {"grace": 4, "reduction": 4}},
    "shared": {"scheduler": "asha", "asha": {"grace": 4, "reduction": 4}, "shared_base": True},
}


def recipe(arm: str, folder: Path, trials: int, count: int) -> dict[str, Any]:
    """SmolLM2-135M with a head, bf16; learning rate, rank and targets are searched at random."""
    train = {
        "epochs": 1,
        "optimizer": {"lr": 5e-4, "schedule": "linear", "warmup": 0.1},
        "batch": {"rows": 16, "micro_tokens": 1024, "max_length": 128},
        "workers": {"threads": None if arm == "asha" else 2},  # of one process, or of two
        "checkpoint_every": 1000,
    }
    attention = ["q_proj", "k_proj", "v_proj", "o_proj"]
    space = {
        f"stages.{STAGE}.train.optimizer.lr": {"loguniform": [2e-5, 5e-3]},
        f"stages.{STAGE}.method.r": {"choice": [4, 8, 16, 32]},
        f"stages.{STAGE}.method.targets": {"choice": ["all-linear", ["q_proj", "v_proj"], attention]},
    }
    return {
        "name": "sst2",
        "model": {"base": "smollm2-135m-instruct"},
        "storage": {"runs": str(folder / "runs")},
        "stages": {
            STAGE: {
                "kind": "classification",
                "labels": list(LABELS),
                "data": {
                    "train": {"path": write(folder / "train.jsonl", rows("train")[:count])},
                    "heldout": {"path": write(folder / "dev.jsonl", rows("dev")), "limit": COMPARED},
                },
                "train": train,
            }
        },
        "sweep": {
            "stage": STAGE,
            "space": space,
            "objective": {"metric": "heldout_loss", "mode": "min"},  # early accuracies are chance
            "budget": {"trials": trials},
            "search": "random",
        }
        | SETTINGS[arm],
    }


class PeakMemory:
    """Proportional set size of this process and all below it, at its largest, while its block runs."""

    def __enter__(self) -> "PeakMemory":
        self.bytes, self._stop = 0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(3.0):
            total = 0
            for process in (me, *me.children(recursive=True)):
                try:
                    total += process.memory_full_info().pss
                except psutil.Error:
                    continue
            self.bytes = max(self.bytes, total)


def run(arm: str, folder: Path, trials: int, count: int) -> None:
    """One arm, in a process of its own."""
    from triptych.cluster.ray import connect
    from triptych.observe.progress import Progress
    from triptych.recipe import load_recipe
    from triptych.tune.sweep import run_sweep

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe(arm, folder, trials, count), sort_keys=False))
    with connect(2, dashboard=True), PeakMemory() as peak:
        started = time.perf_counter()
        found = run_sweep(load_recipe(path), Progress.start())
        seconds = time.perf_counter() - started
    assert found.best is not None
    steps = sum(trial.step for trial in found.trials)
    figures = {
        "wall s": seconds,
        "peak GB": peak.bytes / 1e9,
        "steps": float(steps),
        "tokens": float(found.as_dict()["tokens"]),
    }
    emit(figures | {"dev accuracy": accuracy(Path(found.url) / found.best.run, folder / "dev.jsonl")})


def accuracy(run_folder: Path, dev: Path) -> float:
    """Of a trial's classifier on all rows of a file."""
    import torch

    from triptych.data.encode import encode_texts
    from triptych.data.rows import parse_text
    from triptych.forward.roles import RoleModel
    from triptych.models.adapter import load_adapter
    from triptych.models.base import load_causal_lm, load_tokenizer, resolve_base
    from triptych.models.heads import ClassHead
    from triptych.recipe import Model, Optimizer
    from triptych.stages.supervised import classification
    from triptych.train.learner import Learner
    from triptych.train.tasks.classification import TextClassification

    base = resolve_base(Model(base="smollm2-135m-instruct"))
    tokenizer = load_tokenizer(base)
    adapter = load_adapter(run_folder / "stages" / STAGE / "artifact", "classifier")
    model = RoleModel(load_causal_lm(base, torch.bfloat16), torch.bfloat16)
    head = ClassHead(model.hidden_size, len(LABELS))
    assert adapter.head is not None
    head.load_state_dict(adapter.head)
    model.add("classifier", adapter.method, trainable=True, weights=adapter.weights, head=head)
    learner = Learner(model, {"classifier": Optimizer()}, {"classifier": 1})
    parsed = [parse_text(json.loads(line), LABELS) for line in dev.read_text().splitlines()]
    encoded = encode_texts(parsed, tokenizer, max_length=128, labels=LABELS, drop=False).items
    texts = [{"input_ids": item.input_ids, "label": item.label} for item in encoded]
    batches = [classification._batch(texts[at : at + 16], tokenizer.pad_token_id) for at in range(0, len(texts), 16)]
    return learner.evaluate(TextClassification("classifier", LABELS), batches)["accuracy"]


def show(found: dict[str, Figures]) -> None:
    """A row an arm, and ratios to the first."""
    console, first = Console(), next(iter(found.values()))
    table = Table(title="sweep: SST-2, SmolLM2-135M, random points")
    for column in ("arm", *first, "x less wall", "x less memory"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, figures in found.items():
        ratios = [first[name] / figures[name] for name in ("wall s", "peak GB")]
        table.add_row(arm, *(f"{value:,.4g}" for value in figures.values()), *(f"{ratio:.2f}" for ratio in ratios))
    console.print(table)
    error = math.sqrt(first["dev accuracy"] * (1 - first["dev accuracy"]) / len(rows("dev")))
    console.print(f"standard error of the accuracy: {error:.4f}; {machine()['cpu']}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--arms", nargs="+", choices=SETTINGS, default=["plain", "asha", "shared"])
    parser.add_argument("--out", type=Path, default=Path("build/bench/sweep"))
    parser.add_argument("--run", choices=SETTINGS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        run(options.run, (options.out / options.run).resolve(), options.trials, options.rows)
        return
    found: dict[str, Figures] = {}
    options.out.mkdir(parents=True, exist_ok=True)
    for arm in options.arms:
        result = options.out / f"{arm}.json"
        if not result.exists():
            words = [
                "--run",
                arm,
                "--trials",
                str(options.trials),
                "--rows",
                str(options.rows),
                "--out",
                str(options.out),
            ]
            figures = run_arm(Arm(arm, [sys.executable, __file__, *words], timeout_s=7200))
            result.write_text(
                json.dumps({"figures": figures, "trials": options.trials, "machine": machine()}, indent=2)
            )
        found[arm] = json.loads(result.read_text())["figures"]
    show(found)


if __name__ == "__main__":
    main()
