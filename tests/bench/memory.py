"""Peak memory of an optimiser step: logits in chunks or all at once, with and without gradient checkpointing.

    python tests/bench/memory.py [--rounds 1] [--out build/bench/memory.json]

LoRA of rank 8 on all linear layers of SmolLM2-135M-Instruct, bf16, two threads, two steps of 8 rows of 512 random
tokens, all of them learned, in one micro-batch. The peak is that of the process, interpreter and model included.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

from arm import SEED
from harness import Comparison, run_benchmark
from training import BATCH, BENCH, Row, job_arm, write_rows

LENGTH, STEPS, VOCABULARY, TARGET = 512, 2, 49152, 2.0
WHOLE = {"micro_tokens": BATCH * LENGTH}
LEVERS: dict[str, dict[str, Any]] = {
    "chunks": WHOLE | {"loss_chunk": 512, "checkpointing": "none"},
    "all logits": WHOLE | {"loss_chunk": None, "checkpointing": "none"},
    "chunks, checkpointing": WHOLE | {"loss_chunk": 512, "checkpointing": "full"},
    "all logits, checkpointing": WHOLE | {"loss_chunk": None, "checkpointing": "full"},
}


def random_rows() -> list[Row]:
    chance = random.Random(SEED)
    rows = [[chance.randrange(VOCABULARY) for _ in range(LENGTH)] for _ in range(BATCH * STEPS)]
    return [{"input_ids": ids, "labels": ids} for ids in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("build/bench/memory.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder, "random.jsonl"), random_rows())
        ours = [sys.executable, str(BENCH / "sft.py"), "--ours"]
        arms = [job_arm(name, ours, rows, levers) for name, levers in LEVERS.items()]
        comparisons = [
            Comparison("peak GB", "chunks", "all logits", TARGET, less_is_better=True),
            Comparison("peak GB", "chunks, checkpointing", "all logits, checkpointing", TARGET, less_is_better=True),
            Comparison("tokens/s", "chunks", "all logits"),
            Comparison("tokens/s", "chunks, checkpointing", "all logits, checkpointing"),
        ]
        run_benchmark("Memory levers on CPU", "8 x 512 tokens", arms, comparisons, options.rounds, options.out)


if __name__ == "__main__":
    main()
