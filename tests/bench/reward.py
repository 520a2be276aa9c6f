"""Reward model on CPU: our learner against TRL's RewardTrainer, at its defaults and at its best settings.

    python tests/bench/reward.py [--rounds 2] [--steps 6] [--out build/bench/reward.json] [--search]

LoRA of rank 8 on all linear layers of SmolLM2-135M-Instruct and a scalar head, bf16, two threads, eight pairs a step of
the film-review example. All arms see the same tokens in the same order. `--search` runs TRL with each of CANDIDATES
once, which is how BEST was found.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from arm import Job
from harness import Comparison, emit, measure, run_benchmark, show
from peers.environment import TRL
from precision import DTYPE
from training import (
    BATCH,
    BENCH,
    Row,
    base_folder,
    job_arm,
    our_learner,
    our_model,
    read_jsonl,
    reviews_file,
    run_steps,
    write_rows,
)

MAX_LENGTH, TARGET = 512, 2.0
OURS = {"micro_tokens": 1024}
FAST = {"model_init_kwargs": {"dtype": DTYPE}, "gradient_checkpointing": False}
"""What every candidate has: weights in DTYPE (TRL loads float32), nothing computed twice."""
CANDIDATES: dict[str, dict[str, Any]] = {
    "8": FAST,
    "4 x 2": FAST | {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2},
    "2 x 4": FAST | {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
}
BEST = CANDIDATES["8"]


def pairs(count: int) -> list[Row]:
    from triptych.data import encode_pairs
    from triptych.data.rows import parse_pair
    from triptych.models.base import load_tokenizer

    records = read_jsonl(reviews_file("pairs.train"), count)
    encoded = encode_pairs(map(parse_pair, records), load_tokenizer(base_folder()), MAX_LENGTH)
    return [{"chosen_ids": pair.chosen, "rejected_ids": pair.rejected} for pair in encoded.items]


def measure_ours(job: Job) -> None:
    from triptych.models.base import load_tokenizer
    from triptych.models.heads import ScalarHead
    from triptych.recipe import Lora
    from triptych.train.batch import Batch, pair_batch
    from triptych.train.tasks.reward import PairwiseReward

    model, rows, pad = our_model(job), job.read_rows(), load_tokenizer(Path(job.model)).pad_token_id
    method = Lora(r=job.rank, alpha=job.alpha)
    model.add("reward", method, trainable=True, head=ScalarHead(model.hidden_size))
    learner = our_learner(job, model, "reward", -(-len(rows) // job.batch))

    def batch(chosen: list[Row]) -> Batch:
        return pair_batch([(row["chosen_ids"], row["rejected_ids"]) for row in chosen], pad)

    emit(run_steps(job, learner, PairwiseReward("reward"), rows, batch))


def compare(rows: Path, rounds: int, out: Path) -> None:
    arms = [
        job_arm("triptych", [sys.executable, __file__, "--ours"], rows, OURS),
        job_arm("TRL", peer(), rows, {}),
        job_arm("TRL, best", peer(), rows, BEST),
    ]
    comparisons = [
        Comparison("tokens/s", "triptych", "TRL", TARGET),
        Comparison("tokens/s", "triptych", "TRL, best", TARGET),
        Comparison("peak GB", "triptych", "TRL", 1.0, less_is_better=True),
        Comparison("peak GB", "triptych", "TRL, best", 1.0, less_is_better=True),
        Comparison("mean loss", "triptych", "TRL"),
        Comparison("mean loss", "triptych", "TRL, best"),
    ]
    notes = [f"TRL, best: {BEST}", f"triptych: {OURS}", "heads start from different random weights"]
    run_benchmark("Reward model on CPU, reviews", "real tokens/s", arms, comparisons, rounds, out, notes)


def peer() -> list[str]:
    return [str(TRL.python()), str(BENCH / "peers" / "trl_reward.py")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps, the first of which is not counted")
    parser.add_argument("--out", type=Path, default=Path("build/bench/reward.json"))
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        return measure_ours(Job.load(options.ours))
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder, "pairs.jsonl"), pairs(BATCH * options.steps))
        if options.search:
            samples = measure([job_arm(name, peer(), rows, chosen) for name, chosen in CANDIDATES.items()], 1)
            show("TRL's settings, reviews", "real tokens/s", samples, [])
        else:
            compare(rows, options.rounds, options.out)
    return None


if __name__ == "__main__":
    main()
