"""Accuracy of our reward model on held-out pairs: human preferences on dialogues, and the film-review example.

    python tests/bench/reward_accuracy.py [--out build/bench/reward_accuracy.json] [--seed 0] [--threads 2]

SmolLM2-135M-Instruct, bf16, LoRA of rank 16 on all linear layers, through the reward stage of a recipe. hh-harmless
(Bai et al. 2022) gives 500 training pairs and HELDOUT others, split by prompt; only dialogues of at most CHARACTERS
characters, which the model's context and two cores can bear. The film reviews are cut as in the example's recipe.
"""

import argparse
import gzip
import json
import random
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import Arm, emit, run_benchmark
from training import ROOT, THREADS, VARIABLES, read_jsonl, reviews_file

DIALOGUES = ROOT.parent / "shared" / "data" / "hh-harmless" / "test.jsonl.gz"
CHARACTERS, TRAIN, HELDOUT = 700, 500, 300
LEARNING_RATE = {"hh-harmless": 2e-4, "reviews": 4e-4}

Row = dict[str, Any]


def turns(dialogue: str) -> list[dict[str, str]]:
    """The chat in a text of `\\n\\nHuman: ` and `\\n\\nAssistant: ` turns."""
    parts = re.split(r"\n\n(Human|Assistant):", dialogue)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[name], "content": text.strip()} for name, text in zip(parts[::2], parts[1::2], strict=True)]


def dialogue_pairs(seed: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out pairs; no prompt is in both."""
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    with gzip.open(DIALOGUES, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if max(map(len, record.values())) > CHARACTERS:
                continue
            chosen, rejected = turns(record["chosen"]), turns(record["rejected"])
            texts = [chosen[-1]["content"], rejected[-1]["content"]]
            if (
                chosen[:-1] == rejected[:-1]
                and all(turn["content"] for turn in chosen + rejected)
                and len(set(texts)) > 1
            ):
                row = {"prompt": chosen[:-1], "chosen": texts[0], "rejected": texts[1]}
                by_prompt[json.dumps(row["prompt"])].append(row)
    prompts = sorted(by_prompt)
    random.Random(seed).shuffle(prompts)
    rows = [row for prompt in prompts for row in by_prompt[prompt]]
    border = next(at for at in range(TRAIN, len(rows)) if rows[at]["prompt"] != rows[at - 1]["prompt"])
    return rows[:TRAIN], rows[border : border + HELDOUT]


def review_pairs() -> tuple[Sequence[Row], Sequence[Row]]:
    """As in examples/reviews/recipe.yaml."""
    return read_jsonl(reviews_file("pairs.train"), 640), read_jsonl(reviews_file("pairs.heldout"), 200)


def measure(name: str, seed: int, threads: int) -> None:
    """Train and measure one reward model; emits what its report says."""
    import ray

    from triptych.observe.progress import Progress
    from triptych.recipe import Recipe
    from triptych.stages.run import run_recipe

    with tempfile.TemporaryDirectory() as folder:
        splits = zip(
            ("train", "heldout"), dialogue_pairs(seed) if name == "hh-harmless" else review_pairs(), strict=True
        )
        data = {}
        for split, rows in splits:
            file = Path(folder, f"{split}.jsonl")
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            data[split] = {"path": str(file)}
        train = {
            "epochs": 1,
            "optimizer": {"lr": LEARNING_RATE[name], "schedule": "linear", "warmup": 0.05},
            "batch": {"rows": 16, "micro_tokens": 1024, "max_length": 512},
            "workers": {"threads": threads},
        }
        method = {"name": "lora", "r": 16, "alpha": 32}
        stage = {"kind": "reward", "method": method, "data": data, "train": train}
        recipe = Recipe.model_validate(
            {
                "name": "accuracy",
                "seed": seed,
                "model": {"base": "smollm2-135m-instruct"},
                "storage": {"runs": folder},
                "stages": {"reward": stage},
            }
        )
        ray.init(num_cpus=2, include_dashboard=False)
        run_recipe(recipe, Progress.start())
        report = json.loads(Path(folder, "accuracy/stages/reward/evaluations/reward.json").read_text())
        ray.shutdown()
    length = report["length"]
    emit(
        {
            "accuracy": report["accuracy"],
            "accuracy of length alone": length["baseline"]["accuracy"],
            "accuracy, chosen shorter": length["chosen_shorter"]["accuracy"],
            "correlation with length": length["correlation"],
            "calibration error": report["calibration"]["ece"],
            "held-out pairs": report["pairs"],
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/bench/reward_accuracy.json"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        return measure(options.arm, options.seed, options.threads)
    names = [name for name in LEARNING_RATE if name != "hh-harmless" or DIALOGUES.is_file()]
    me = [sys.executable, __file__, "--seed", str(options.seed), "--threads", str(options.threads), "--arm"]
    arms = [Arm(name, [*me, name], VARIABLES, timeout_s=1800) for name in names]
    run_benchmark("Reward model on held-out pairs", "share", arms, [], 1, options.out)
    return None


if __name__ == "__main__":
    main()
