"""Trials of one base side by side in one process, against the same trials one after another.

    python tests/bench/shared_base.py [--trials 1 2 4 8] [--rounds 3] [--steps 12] [--out build/bench/shared-base.json]

LoRA on all linear layers of SmolLM2-135M-Instruct, bf16, two threads, eight rows a step: classes of short texts (SST-2,
about 12 tokens a row) and worked answers to school mathematics (gsm8k, about 200). The trials differ in learning rate,
rank (4 to 16) and the order of their rows. Both arms run in a process of their own and hold one copy of the base; both
take every step of every trial. A trial's part of a pass never exceeds its own micro-batch, nor does the pass.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from arm import SEED, Job
from harness import Arm, Comparison, emit, run_benchmark
from sft import gsm8k
from training import BATCH, GSM8K, ROOT, VARIABLES, Row, base_folder, our_model, write_rows

if TYPE_CHECKING:
    from triptych.train.stepping import StepRequest

SST2 = ROOT.parent / "shared" / "data" / "sst2" / "train.tsv"
MICRO_TOKENS = 4096
RANKS = (16, 8, 4)
TOGETHER, AFTER = "together", "one by one"


def sst2(count: int) -> list[Row]:
    """Texts as tokens, with the index of their class as only label."""
    from triptych.models.base import load_tokenizer

    tokenizer = load_tokenizer(base_folder())
    lines = SST2.read_text(encoding="utf-8").splitlines()[1 : count + 1]
    pairs = (line.rsplit("\t", 1) for line in lines)
    return [
        {"input_ids": [*tokenizer.encode(text), tokenizer.eos_token_id], "label": [int(label)]} for text, label in pairs
    ]


DATA: dict[str, tuple[Path, Callable[[int], list[Row]]]] = {"sst2": (SST2, sst2), "gsm8k": (GSM8K, gsm8k)}


@dataclass(frozen=True)
class Trials:
    """So many trials on one model, and the steps that they ask for."""

    job: Job
    count: int

    def asks(self) -> "Iterator[list[StepRequest]]":
        """Every trial's next step, again and again."""
        from triptych.data.batches import epoch_order, packed_micro_batches
        from triptych.models.heads import ClassHead
        from triptych.recipe import Lora, Optimizer
        from triptych.train.learner import Learner
        from triptych.train.stepping import StepRequest
        from triptych.train.tasks.classification import TextClassification
        from triptych.train.tasks.language import LanguageModeling

        model, rows = our_model(self.job), self.job.read_rows()
        labelled = "label" in rows[0]
        learners = []
        for number in range(self.count):
            role, rank = f"trial-{number}", RANKS[number % len(RANKS)]
            head = ClassHead(model.hidden_size, 2) if labelled else None
            model.add(role, Lora(r=rank, alpha=2 * rank), trainable=True, head=head)
            objective = TextClassification(role, ("0", "1")) if labelled else LanguageModeling(role)
            optimizer = Optimizer(lr=self.job.learning_rate * (1 + number))
            learners.append((Learner(model, {role: optimizer}, {role: 1000}, dropout=True), objective))
        steps = len(rows) // BATCH
        for step in range(steps):
            found = []
            for number, (learner, objective) in enumerate(learners):
                places = epoch_order(len(rows), SEED + number, 0)[step * BATCH : (step + 1) * BATCH]
                chosen = [rows[place] for place in places]
                cut = packed_micro_batches([[row["input_ids"]] for row in chosen], MICRO_TOKENS, 1)[0]
                batches = [_batch([chosen[index] for index in micro]) for micro in cut]
                found.append(StepRequest(learner, objective, batches))
            yield found


def _batch(rows: list[Row]) -> Any:
    import torch

    from triptych.data.batches import pad_right
    from triptych.train.batch import language_batch

    if "label" not in rows[0]:
        return language_batch([(row["input_ids"], row["labels"]) for row in rows], 0)
    ids, mask = pad_right([row["input_ids"] for row in rows], 0)
    return {"ids": ids, "mask": mask, "label": torch.tensor([row["label"][0] for row in rows])}


def measure(job: Job) -> None:
    """One arm: the first step of each trial settles allocator and threads and is not counted."""
    from triptych.train.learner import StepReport
    from triptych.train.stepping import step_together
    from triptych.train.usage import real_tokens

    seconds, tokens = 0.0, 0
    losses: list[float] = []
    for number, asks in enumerate(Trials(job, job.settings["trials"]).asks()):
        started = time.perf_counter()
        reports = step_together(asks, MICRO_TOKENS) if job.settings["arm"] == TOGETHER else [a.run() for a in asks]
        if number:
            seconds += time.perf_counter() - started
            tokens += sum(real_tokens(batch) for ask in asks for batch in ask.micro_batches if batch)
        losses += [report.metrics["loss"] for report in reports if isinstance(report, StepReport)]
    emit(
        {
            "tokens/s": tokens / seconds,
            "seconds a step of all": seconds / number,
            "peak GB": _peak_gb(),
            "mean loss": sum(losses) / len(losses),
        }
    )


def _peak_gb() -> float:
    import torch

    from triptych.forward.process_memory import peak_memory

    return peak_memory(torch.device("cpu")) / 1e9


def main() -> None:
    """Arms of every number of trials, paired by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of each trial, the first of which is not counted")
    here = [name for name, (file, _) in DATA.items() if file.is_file()]
    parser.add_argument("--data", nargs="+", choices=DATA, default=here)
    out = Path("build/bench/shared-base.json")
    parser.add_argument("--out", type=Path, default=out, help="one file for each data set")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        return measure(Job.load(options.arm))
    for name in options.data:
        with tempfile.TemporaryDirectory() as folder:
            rows = write_rows(Path(folder, f"{name}.jsonl"), DATA[name][1](BATCH * options.steps))
            arms, comparisons = [], []
            for count in options.trials:
                arms += [_arm(kind, count, rows) for kind in (TOGETHER, AFTER)]
                ours, peer = f"{count} {TOGETHER}", f"{count} {AFTER}"
                comparisons.append(Comparison("tokens/s", ours, peer))
                comparisons.append(Comparison("peak GB", ours, peer, less_is_better=True))
                comparisons.append(Comparison("mean loss", ours, peer))
            out = options.out.with_stem(f"{options.out.stem}-{name}")
            run_benchmark(f"Trials on a shared base, {name}", "real tokens/s", arms, comparisons, options.rounds, out)
    return None


def _arm(kind: str, count: int, rows: Path) -> Arm:
    job = Job(str(base_folder()), str(rows), BATCH, 2e-4, settings={"arm": kind, "trials": count})
    command = [sys.executable, __file__, "--arm", str(job.save(rows.with_name(f"{count} {kind}.json")))]
    return Arm(f"{count} {kind}", command, {**VARIABLES, "PYTHONPATH": os.pathsep.join(sys.path)})


if __name__ == "__main__":
    main()
