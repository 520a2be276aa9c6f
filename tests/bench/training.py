"""What the training benchmarks share: the model, the rows, and our own arm."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arm import SEED, Job, figures
from harness import Arm, Figures
from precision import DTYPE

if TYPE_CHECKING:
    from triptych.forward.roles import RoleModel
    from triptych.train.batch import Batch
    from triptych.train.learner import Learner, Objective

Row = dict[str, list[int]]

BENCH = Path(__file__).parent
ROOT = BENCH.parents[1]
GSM8K = ROOT.parent / "shared" / "data" / "gsm8k" / "train.jsonl"
REVIEWS = ROOT / "examples" / "reviews"
THREADS = 2
BATCH, LEARNING_RATE = 8, 2e-4
VARIABLES = {
    "OMP_NUM_THREADS": str(THREADS),
    "PYTHONPATH": str(BENCH),
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
"""Of every arm."""


def base_folder() -> Path:
    from triptych.models.base import resolve_base
    from triptych.recipe import Model

    return resolve_base(Model(base="smollm2-135m-instruct"))


def reviews_file(name: str) -> Path:
    """A file of the film-review example; its data is made if there is none."""
    file = REVIEWS / "data" / f"{name}.jsonl"
    if not file.is_file():
        subprocess.run([sys.executable, str(REVIEWS / "prepare.py")], check=True, stdout=sys.stderr)
    return file


def read_jsonl(file: Path, count: int) -> list[dict[str, str]]:
    """The first `count` records."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()[:count]]


def write_rows(file: Path, rows: Sequence[Row]) -> Path:
    """Write rows in the order of training, which is random."""
    from triptych.data.batches import epoch_order

    file.write_text("".join(json.dumps(rows[index]) + "\n" for index in epoch_order(len(rows), SEED, 0)))
    return file


def job_arm(name: str, command: Sequence[str], rows: Path, settings: dict[str, Any]) -> Arm:
    """`command`, with the file of its job as last argument."""
    job = Job(str(base_folder()), str(rows), BATCH, LEARNING_RATE, settings=settings)
    return Arm(name, [*command, str(job.save(rows.with_name(f"{rows.stem}, {name}.json")))], VARIABLES)


def our_model(job: Job) -> "RoleModel":
    """The frozen base in DTYPE, no role on it yet."""
    import torch

    from triptych.forward.roles import RoleModel
    from triptych.models.base import load_causal_lm

    levers = {name: job.settings[name] for name in ("loss_chunk", "checkpointing") if name in job.settings}
    torch.manual_seed(SEED)
    return RoleModel(load_causal_lm(Path(job.model), getattr(torch, DTYPE)), **levers)


def our_learner(job: Job, model: "RoleModel", role: str, steps: int) -> "Learner":
    from triptych.recipe import Optimizer
    from triptych.train.learner import Learner

    optimizer = Optimizer(lr=job.learning_rate, schedule="linear")
    return Learner(model, {role: optimizer}, {role: steps}, dropout=True)


def run_steps(
    job: Job,
    learner: "Learner",
    objective: "Objective",
    rows: Sequence[Row],
    batch: "Callable[[list[Row]], Batch]",
) -> Figures:
    """Every optimiser step of the job, cut into micro-batches as the stages cut them."""
    from triptych.data.batches import packed_micro_batches

    ends, tokens, losses = [], [], []
    for start in range(0, len(rows), job.batch):
        step = rows[start : start + job.batch]
        texts = [text_columns(row) for row in step]
        cut = packed_micro_batches(texts, job.settings["micro_tokens"], 1)[0]
        report = learner.step(objective, [batch([step[index] for index in micro]) for micro in cut])
        ends.append(time.perf_counter())
        tokens.append(sum(len(text) for row in texts for text in row))
        losses.append(report.metrics["loss"])
    return figures(ends, tokens, losses)


def text_columns(row: Row) -> list[list[int]]:
    """The columns of a row that are read as text: its tokens, or both answers of a pair."""
    return [row[name] for name in ("input_ids", "chosen_ids", "rejected_ids") if name in row]
