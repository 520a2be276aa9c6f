"""Supervised fine-tuning on CPU: our learner against TRL's SFTTrainer, at its defaults and its best, and LLaMA-Factory.

    python tests/bench/sft.py [--rounds 2] [--steps 5] [--out build/bench/sft.json] [--search]

LoRA of rank 8 on all linear layers of SmolLM2-135M-Instruct, bf16, two threads, eight rows a step, on worked answers to
school mathematics (gsm8k, where ../shared/data has it) and on the chats of the film-review example. All arms see the
same tokens in the same order, learn the assistant's tokens only, and start from the same adapter. `--search` runs TRL
with each of CANDIDATES once, on the first rows, which is how BEST was found.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arm import Job
from harness import Comparison, emit, measure, run_benchmark, show
from peers.environment import LLAMAFACTORY, LLAMAFACTORY_NOTE, TRL
from precision import DTYPE
from training import (
    BATCH,
    BENCH,
    GSM8K,
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

MAX_LENGTH = 1024
OURS = {"micro_tokens": 1024}


def micro(rows: int) -> dict[str, Any]:
    """So many rows in a forward pass, eight in a step."""
    return {"per_device_train_batch_size": rows, "gradient_accumulation_steps": BATCH // rows}


PADDING_FREE = {"padding_free": True, "max_length": None}
FAST = {"model_init_kwargs": {"dtype": DTYPE}, "gradient_checkpointing": False}
"""What every candidate has: weights in DTYPE (TRL loads float32), nothing computed twice."""
CANDIDATES: dict[str, dict[str, Any]] = {
    "padded, 8": FAST,
    "by length, 2 x 4": FAST | micro(2) | {"train_sampling_strategy": "group_by_length"},
    "one by one": FAST | micro(1),
    "padding-free, 8": FAST | PADDING_FREE,
    "padding-free, 4 x 2": FAST | PADDING_FREE | micro(4),
    "padding-free, 2 x 4": FAST | PADDING_FREE | micro(2),
    "packing to 1024": FAST | {"packing": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
}
BEST = {"gsm8k": "one by one", "reviews": "padding-free, 8"}
FACTORY = micro(1) | {"disable_gradient_checkpointing": True, "bf16": DTYPE == "bfloat16"}
"""LLaMA-Factory's example, with nothing computed twice."""
DEFAULT_TARGET, BEST_TARGET = 2.5, 1.8


def gsm8k(count: int) -> list[Row]:
    records = read_jsonl(GSM8K, count)
    return encode([{"prompt": record["question"], "response": record["answer"]} for record in records])


def review_chats(count: int) -> list[Row]:
    return encode(read_jsonl(reviews_file("sft.train"), count))


def encode(records: list[dict[str, str]]) -> list[Row]:
    from triptych.data import encode_sft
    from triptych.data.rows import parse_sft
    from triptych.models.base import load_tokenizer

    encoded = encode_sft(map(parse_sft, records), load_tokenizer(base_folder()), MAX_LENGTH)
    return [{"input_ids": item.input_ids, "labels": item.labels} for item in encoded.items]


DATA: dict[str, Callable[[int], list[Row]]] = {"reviews": review_chats}
if GSM8K.is_file():
    DATA = {"gsm8k": gsm8k} | DATA


def measure_ours(job: Job) -> None:
    from triptych.models.base import load_tokenizer
    from triptych.recipe import Lora
    from triptych.train.batch import Batch, language_batch
    from triptych.train.tasks.language import LanguageModeling

    model, rows, pad = our_model(job), job.read_rows(), load_tokenizer(Path(job.model)).pad_token_id
    model.add("policy", Lora(r=job.rank, alpha=job.alpha), trainable=True)
    learner = our_learner(job, model, "policy", -(-len(rows) // job.batch))

    def batch(chosen: list[Row]) -> Batch:
        return language_batch([(row["input_ids"], row["labels"]) for row in chosen], pad)

    emit(run_steps(job, learner, LanguageModeling("policy"), rows, batch))


def compare(name: str, rows: Path, rounds: int, out: Path) -> None:
    factory = [str(LLAMAFACTORY.python()), str(BENCH / "peers" / "llamafactory_sft.py")]
    arms = [
        job_arm("triptych", [sys.executable, __file__, "--ours"], rows, OURS),
        job_arm("TRL", trl(), rows, {}),
        job_arm("TRL, best", trl(), rows, CANDIDATES[BEST[name]]),
        job_arm("LLaMA-Factory", factory, rows, FACTORY),
    ]
    comparisons = [
        Comparison("tokens/s", "triptych", "TRL", DEFAULT_TARGET),
        Comparison("tokens/s", "triptych", "TRL, best", BEST_TARGET),
        Comparison("tokens/s", "triptych", "LLaMA-Factory"),
        Comparison("peak GB", "triptych", "TRL", 1.0, less_is_better=True),
        Comparison("peak GB", "triptych", "TRL, best", 1.0, less_is_better=True),
        Comparison("peak GB", "triptych", "LLaMA-Factory", 1.0, less_is_better=True),
        Comparison("mean loss", "triptych", "TRL"),
        Comparison("mean loss", "triptych", "TRL, best"),
        Comparison("mean loss", "triptych", "LLaMA-Factory"),
    ]
    notes = [
        f"triptych: {OURS}",
        f"TRL, best ({BEST[name]}): {CANDIDATES[BEST[name]]}",
        f"LLaMA-Factory: {FACTORY}",
        LLAMAFACTORY_NOTE,
    ]
    run_benchmark(f"Supervised fine-tuning on CPU, {name}", "real tokens/s", arms, comparisons, rounds, out, notes)


def trl() -> list[str]:
    return [str(TRL.python()), str(BENCH / "peers" / "trl_sft.py")]


def search(name: str, rows: Path) -> None:
    """One run of each candidate."""
    samples = measure([job_arm(candidate, trl(), rows, chosen) for candidate, chosen in CANDIDATES.items()], 1)
    show(f"TRL's settings, {name}", "real tokens/s", samples, [])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="optimizer steps, the first of which is not counted")
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--out", type=Path, default=Path("build/bench/sft.json"), help="one file for each data set")
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--ours", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ours:
        return measure_ours(Job.load(options.ours))
    with tempfile.TemporaryDirectory() as folder:
        for name in options.data:
            rows = write_rows(Path(folder, f"{name}.jsonl"), DATA[name](BATCH * options.steps))
            if options.search:
                search(name, rows)
            else:
                compare(name, rows, options.rounds, options.out.with_stem(f"{options.out.stem}-{name}"))
    return None


if __name__ == "__main__":
    main()
