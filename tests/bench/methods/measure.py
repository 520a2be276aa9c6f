"""One cell in a process of its own: train, and measure on held-out rows, on the learner alone.

python -m methods.measure JOB.json
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Figures, emit
from methods.tasks import TASKS

if TYPE_CHECKING:
    from triptych.train.batch import Batch
    from triptych.train.learner import Objective

Row = dict[str, Any]

ROLE = "role"
WARMUP = 0.1
"""Share of the steps over which the learning rate rises; then it falls linearly to zero."""
MICRO_TOKENS, HELDOUT_TOKENS = 1024, 2048


@dataclass(frozen=True)
class Job:
    """What a cell is made of."""

    data: str
    model: str
    """Hugging Face folder."""
    train: str
    heldout: str
    """JSONL of encoded rows."""
    method: Any
    """As a recipe holds it."""
    learning_rate: float
    """Of the head, and of parts of the method that have none of their own."""
    seed: int
    only_steps: int | None = None
    """Train so many steps, only to time them."""

    @classmethod
    def load(cls, path: str) -> "Job":
        return cls(**json.loads(Path(path).read_text(encoding="utf-8")))

    def save(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")
        return path

    def rows(self, split: str) -> list[Row]:
        lines = Path(getattr(self, split)).read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def steps(self) -> Iterator[list[Row]]:
        """The rows of each optimiser step: every epoch has an order of its own."""
        from triptych.data.batches import epoch_order

        rows, task = self.rows("train"), TASKS[self.data]
        epochs = (epoch_order(len(rows), self.seed, epoch) for epoch in range(task.epochs))
        starts = range(0, len(rows), task.batch)
        cut = ([rows[i] for i in order[start : start + task.batch]] for order in epochs for start in starts)
        yield from islice(cut, self.only_steps)


def figures(metrics: Figures, trainable: int, head: int, ends: Sequence[float], tokens: Sequence[int]) -> Figures:
    """Of a run that is about to measure itself, before held-out rows need memory.

    Args:
        metrics: of the last step.
        trainable: parameters of the method.
        head: parameters of the head.
        ends: when each optimiser step ended, in seconds; the first settles allocator and threads.
        tokens: real tokens of each step.
    """
    seconds = [after - before for before, after in pairwise(ends)]
    return {
        "trainable": trainable,
        "head": head,
        "peak GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "step s": statistics.median(seconds),
        "tokens/s": sum(tokens[1:]) / (ends[-1] - ends[0]),
        "last step's loss": metrics["loss"],
    }


def objective(data: str) -> "Objective":
    from triptych.train.tasks.classification import TextClassification
    from triptych.train.tasks.language import LanguageModeling
    from triptych.train.tasks.token_classification import TokenTagging

    task = TASKS[data]
    if task.kind == "texts":
        return TextClassification(ROLE, task.labels)
    return TokenTagging(ROLE, task.labels, mark_entities=True) if task.kind == "tags" else LanguageModeling(ROLE)


def batch(rows: Sequence[Row], pad: int) -> "Batch":
    import torch

    from triptych.data.batches import pad_right
    from triptych.objectives import IGNORE

    ids, mask = pad_right([row["input_ids"] for row in rows], pad)
    if "label" in rows[0]:
        return {"ids": ids, "mask": mask, "label": torch.tensor([row["label"] for row in rows])}
    name = "tags" if "tags" in rows[0] else "labels"
    return {"ids": ids, "mask": mask, name: pad_right([row[name] for row in rows], IGNORE)[0]}


def micro_batches(rows: Sequence[Row], budget: int, pad: int) -> "list[Batch | None]":
    from triptych.data.batches import packed_micro_batches

    cut = packed_micro_batches([[row["input_ids"]] for row in rows], budget, 1)[0]
    return [batch([rows[index] for index in micro], pad) for micro in cut]


def measure(job: Job) -> None:
    import torch
    from pydantic import TypeAdapter

    from triptych.forward.roles import HEAD, RoleModel
    from triptych.models.base import load_causal_lm, load_tokenizer
    from triptych.models.heads import ClassHead
    from triptych.recipe import Method, Optimizer
    from triptych.train.learner import Learner

    torch.manual_seed(job.seed)
    labels, pad = TASKS[job.data].labels, load_tokenizer(Path(job.model)).pad_token_id
    model = RoleModel(load_causal_lm(Path(job.model), torch.bfloat16))
    head = ClassHead(model.hidden_size, len(labels)) if labels else None
    model.add(ROLE, TypeAdapter[Any](Method).validate_python(job.method), trainable=True, head=head)
    steps = list(job.steps())
    optimizer = Optimizer(lr=job.learning_rate, schedule="linear", warmup=WARMUP)
    learner = Learner(model, {ROLE: optimizer}, {ROLE: len(steps)}, dropout=True)

    ends, tokens, metrics = [], [], {}
    for rows in steps:
        metrics = learner.step(objective(job.data), micro_batches(rows, MICRO_TOKENS, pad)).metrics
        ends.append(time.perf_counter())
        tokens.append(sum(len(row["input_ids"]) for row in rows))
    sizes = {name: parameter.numel() for name, parameter in model.parameters_of(ROLE).items()}
    of_head = sum(size for name, size in sizes.items() if name.startswith(HEAD))
    found = figures(metrics, sum(sizes.values()) - of_head, of_head, ends, tokens)
    if job.only_steps:
        return emit(found)
    heldout = micro_batches(job.rows("heldout"), HELDOUT_TOKENS, pad)
    return emit(found | learner.evaluate(objective(job.data), heldout))


if __name__ == "__main__":
    measure(Job.load(sys.argv[1]))
