"""What both of TRL's trainers need as an arm: their arguments, and a record of their steps."""

import time
from itertools import pairwise
from typing import Any

from transformers import TrainerCallback

from arm import SEED, Job, figures
from harness import Figures


def training_arguments(job: Job) -> dict[str, Any]:
    """The trainer's defaults but for what the job asks of every arm, and the job's settings."""
    return {
        "per_device_train_batch_size": job.batch,
        "num_train_epochs": 1,
        "learning_rate": job.learning_rate,
        "use_cpu": True,
        "train_sampling_strategy": "sequential",
        "seed": SEED,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    } | job.settings


class Steps(TrainerCallback):
    """When each optimiser step ended; their tokens and losses are in the trainer's own log."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    def figures(self, log_history: list[dict[str, float]]) -> Figures:
        rows = [row for row in log_history if "loss" in row]
        totals = [0, *(int(row["num_tokens"]) for row in rows)]
        tokens = [after - before for before, after in pairwise(totals)]
        return figures(self.ends, tokens, [row["loss"] for row in rows])
