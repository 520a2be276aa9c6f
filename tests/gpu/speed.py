"""Tokens a second, model FLOPs utilisation and peak memory: ours against transformers' Trainer on the same rows.

Rows of random tokens, 32 an optimiser step, lengths as chats have them. Ours packs them in bfloat16. Trainer pads them:
at its defaults (float32, micro-batches of 8), and in bfloat16. Both train float32 weights, or adapters on a frozen base
of the precision that is computed in.
"""

import itertools
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from peft import PrefixTuningConfig, PromptTuningConfig, TaskType, get_peft_model
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from result import Figures, Result, Verdict, attempt, now
from shapes import (
    METHODS,
    OBJECTIVE,
    PAD,
    ROWS,
    Row,
    Setup,
    Shape,
    batches_of,
    make_base,
    make_learner,
    make_model,
    random_rows,
)
from triptych.data.batches import pad_right
from triptych.forward.process_memory import peak_memory
from triptych.methods.flops import TokenCounts, train_flops
from triptych.methods.lora import lora_config
from triptych.plan.machines import peak_flops
from triptych.recipe import Full, Lora, Method
from triptych.recipe.virtual import PrefixTuning, PromptTuning
from triptych.train.usage import token_counts

PART = "speed"
WARM = 2
"""First steps, which are not counted."""
MICRO_TOKENS = 16384
TRAINER_ROWS = 8
"""Of a micro-batch: Trainer's default."""
TIMED: dict[str, Method] = {
    **METHODS,
    "prompt_tuning": PromptTuning(num_virtual_tokens=20, init="random"),
    "prefix_tuning": PrefixTuning(num_virtual_tokens=20, prefix_projection=False, init="random"),
}


def ours(shape: Shape, method: str, device: torch.device, rows: Sequence[Row]) -> list[float]:
    """When each step ended, in seconds; making the batches counts."""
    learner = make_learner(make_model(shape, TIMED[method], device, torch.bfloat16))
    ends = []
    for start in range(0, len(rows), ROWS):
        learner.step(OBJECTIVE, batches_of(rows[start : start + ROWS], MICRO_TOKENS))
        ends.append(now(device))
    return ends


def trainer(shape: Shape, method: str, device: torch.device, rows: Sequence[Row], *, half: bool) -> list[float]:
    """When each step ended, in seconds."""
    chosen = TIMED[method]
    narrow = half and not isinstance(chosen, Full)
    model: Any = make_base(shape, device, torch.bfloat16 if narrow else torch.float32)
    if not isinstance(chosen, Full):
        model = get_peft_model(model, _of_peft(chosen))
    ends = _Ends(device)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder,
            num_train_epochs=1,
            gradient_accumulation_steps=ROWS // TRAINER_ROWS,
            learning_rate=1e-4,
            bf16=half,
            train_sampling_strategy="sequential",
            use_cpu=device.type == "cpu",
            dataloader_pin_memory=device.type == "cuda",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data: Any = [{"input_ids": ids, "labels": labels} for ids, labels in rows]
        one = Trainer(model, settings, data_collator=_padded, train_dataset=data, callbacks=[ends])
        one.remove_callback(PrinterCallback)
        one.train()
    return ends.seconds


def _of_peft(method: Method) -> Any:
    """Its configuration of the same method, with the same numbers of parameters."""
    if isinstance(method, Lora):
        return lora_config(method)
    if isinstance(method, PromptTuning):
        return PromptTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=method.num_virtual_tokens)
    assert isinstance(method, PrefixTuning)
    return PrefixTuningConfig(task_type=TaskType.CAUSAL_LM, num_virtual_tokens=method.num_virtual_tokens)


class _Ends(TrainerCallback):
    def __init__(self, device: torch.device) -> None:
        self.seconds: list[float] = []
        self._device = device

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now(self._device))


def _padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    ids, mask = pad_right([row["input_ids"] for row in rows], PAD)
    labels, _ = pad_right([row["labels"] for row in rows], -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


ARMS: dict[str, Callable[[Shape, str, torch.device, Sequence[Row]], list[float]]] = {
    "triptych": ours,
    "Trainer": partial(trainer, half=False),
    "Trainer bf16": partial(trainer, half=True),
}


def run_arm(arm: str, shape: Shape, method: str, device: torch.device, steps: int) -> tuple[Verdict, Figures]:
    rows = random_rows(shape, ROWS * (WARM + steps))
    ends = ARMS[arm](shape, method, device, rows)
    counted = rows[ROWS * WARM :]
    seconds = ends[-1] - ends[WARM - 1]
    figures: Figures = {"tokens/s": sum(len(ids) for ids, _ in counted) / seconds}
    if device.type == "cuda":
        figures["peak GB"] = peak_memory(device) / 1e9
        if peak := peak_flops(torch.cuda.get_device_name(device), "bfloat16"):
            work = sum((token_counts(batch, shared=False) for batch in batches_of(counted, 1 << 20)), TokenCounts())
            figures["MFU"] = train_flops(shape.sizes, TIMED[method], work) / seconds / peak
    return "measured", figures


def check(setup: Setup) -> Iterator[Result]:
    """The arms take turns, and turn around from round to round; then the ratios within a round, with their spread."""
    for shape, method in itertools.product(setup.shapes, TIMED):
        arms = list(ARMS) if method in METHODS else ["triptych", "Trainer bf16"]
        found: dict[str, list[Result]] = {arm: [] for arm in arms}
        for turn in range(setup.rounds):
            for arm in arms[:: 1 if turn % 2 == 0 else -1]:
                compute = partial(run_arm, arm, shape, method, setup.device, setup.steps)
                found[arm].append(attempt(PART, f"{shape.name}, {method}, {arm}", compute))
        yield from itertools.chain.from_iterable(found.values())
        for peer in arms[1:]:
            yield from _ratios(f"{shape.name}, {method}, triptych / {peer}", found["triptych"], found[peer])


def _ratios(case: str, own: Sequence[Result], others: Sequence[Result]) -> Iterator[Result]:
    pairs = [pair for pair in zip(own, others, strict=True) if all(one.verdict == "measured" for one in pair)]
    figures: Figures = {}
    for name in ("tokens/s", "peak GB"):
        ratios = [float(a.figures[name]) / float(b.figures[name]) for a, b in pairs if name in a.figures]
        if ratios:
            figures[name] = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} - {max(ratios):.2f})"
    if figures:
        yield Result(PART, case, "measured", figures)
