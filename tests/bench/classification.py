"""Accuracy of a classifier on the dev set of SST-2, after one epoch on 4,000 of its training rows.

    python tests/bench/classification.py [--rows 4000] [--seeds 1] [--out build/bench/classification.json]

The stage as a recipe runs it: LoRA of rank 16 on SmolLM2-135M-Instruct, bf16, one worker with two threads. A round is a
seed, which draws the rows, their order and the first weights.
"""

import argparse
import csv
import json
import sys
import tempfile
import time
from pathlib import Path

import yaml

from harness import Arm, emit, run_benchmark

SST2 = Path(__file__).parents[3] / "shared" / "data" / "sst2"
LABELS = ("negative", "positive")


def rows(name: str) -> list[dict[str, str]]:
    with (SST2 / f"{name}.tsv").open(encoding="utf-8", newline="") as stream:
        found = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{"text": row["sentence"].strip(), "label": row["label"]} for row in found]


def write(file: Path, chosen: list[dict[str, str]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    return str(file)


def train(folder: Path, count: int, seed: int) -> None:
    """Run the stage and hand back its figures."""
    import ray

    from triptych.data.batches import epoch_order
    from triptych.observe.log import read_metrics
    from triptych.observe.progress import Progress
    from triptych.recipe import load_recipe
    from triptych.stages.run import run_recipe

    every = rows("train")
    chosen = [every[index] for index in epoch_order(len(every), seed, 0)[:count]]
    stage = {
        "kind": "classification",
        "labels": list(LABELS),
        "data": {
            "train": {"path": write(folder / "train.jsonl", chosen)},
            "heldout": {"path": write(folder / "dev.jsonl", rows("dev"))},
        },
        "train": {
            "epochs": 1,
            "optimizer": {"lr": 5e-4, "schedule": "linear", "warmup": 0.1},
            "batch": {"rows": 16, "micro_tokens": 1024, "max_length": 128},
            "workers": {"threads": 2},
            "checkpoint_every": 1000,
        },
    }
    recipe = {
        "name": "sst2",
        "seed": seed,
        "model": {"base": "smollm2-135m-instruct"},
        "storage": {"runs": str(folder / "runs")},
        "stages": {"classifier": stage},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    started = time.perf_counter()
    summary = run_recipe(load_recipe(folder / "recipe.yaml"), Progress.start())["classifier"]
    seconds = time.perf_counter() - started
    ray.shutdown()
    steps = read_metrics(str(folder / "runs" / "sst2" / "stages" / "classifier"))
    tokens = sum(row["tokens"] for row in steps)
    in_steps = sum(row["tokens"] / row["tokens_per_second"] for row in steps)
    metrics = {f"dev {name}": summary["metrics"][f"heldout_{name}"] for name in ("accuracy", "macro_f1", "loss")}
    stall = 100 * sum(row["seconds_data"] for row in steps) / in_steps
    emit(metrics | {"tokens/s": tokens / in_steps, "data stall %": stall, "seconds": seconds})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/bench/classification.json"))
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        seed = len(list(options.train.iterdir()))
        folder = options.train / str(seed)
        folder.mkdir()
        return train(folder, options.rows, seed)
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, __file__, "--train", scratch, "--rows", str(options.rows)]
        arms = [Arm("triptych", command, {"OMP_NUM_THREADS": "2"}, timeout_s=1800)]
        title = f"SST-2 dev set, {options.rows} training rows, one epoch"
        run_benchmark(title, "share, tokens/s, seconds", arms, [], options.seeds, options.out)
    return None


if __name__ == "__main__":
    main()
