"""LLaMA-Factory's SFT as an arm of sft.py. In its environment: python tests/bench/peers/llamafactory_sft.py JOB.json"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict
from llamafactory.train.tuner import run_exp  # type: ignore[import-not-found]
from transformers import TrainerCallback, TrainerState

from arm import SEED, Job, figures
from harness import emit


class Steps(TrainerCallback):
    """When each optimiser step ended, and the trainer's log."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def on_train_end(self, args: object, state: TrainerState, control: object, **_: Any) -> None:
        self.losses = [row["loss"] for row in state.log_history if "loss" in row]


def main() -> None:
    job, steps = Job.load(sys.argv[1]), Steps()
    rows = job.read_rows()
    with tempfile.TemporaryDirectory() as folder:
        encoded = Path(folder, "rows")
        columns = [row | {"attention_mask": [1] * len(row["input_ids"])} for row in rows]
        DatasetDict({"train": Dataset.from_list(columns)}).save_to_disk(encoded)
        run_exp(arguments(job, encoded, Path(folder, "out")), callbacks=[steps])
    tokens = [sum(len(row["input_ids"]) for row in rows[i : i + job.batch]) for i in range(0, len(rows), job.batch)]
    emit(figures(steps.ends, tokens, steps.losses))


def arguments(job: Job, rows: Path, out: Path) -> dict[str, Any]:
    """Its example for LoRA, with what the job asks of every arm, and the job's settings."""
    return {
        "model_name_or_path": job.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": job.rank,
        "lora_alpha": job.alpha,
        "lora_target": "all",
        "dataset": "rows",
        "template": "empty",
        "tokenized_path": str(rows),
        "disable_shuffling": True,
        "output_dir": str(out),
        "per_device_train_batch_size": job.batch,
        "num_train_epochs": 1,
        "learning_rate": job.learning_rate,
        "lr_scheduler_type": "linear",
        "use_cpu": True,
        "bf16": True,
        "seed": SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    } | job.settings


if __name__ == "__main__":
    main()
