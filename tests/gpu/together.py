"""Trials of one base side by side in one process, against the same trials one after another: what a sweep saves."""

import itertools
import random
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from result import Figures, Result, Verdict, attempt, now
from shapes import Setup, Shape, make_base, random_row
from triptych.data.batches import packed_micro_batches
from triptych.forward.process_memory import peak_memory
from triptych.forward.roles import RoleModel
from triptych.recipe import Lora, Optimizer
from triptych.train.batch import Batch, language_batch
from triptych.train.learner import Learner
from triptych.train.stepping import StepRequest, step_together
from triptych.train.tasks.language import LanguageModeling

PART = "together"
TRIALS = (2, 4, 8, 16)
LENGTHS = (32, 512)
"""Tokens of a row at most: short texts, and chats."""
ROWS = 8
"""Of a trial's step."""
PASS_TOKENS = 16384
WARM, STEPS = 2, 6


class Trials:
    """LoRA trials of different ranks and rates on one base, and their rows."""

    def __init__(self, shape: Shape, device: torch.device, count: int, length: int) -> None:
        model = RoleModel(make_base(shape, device, torch.bfloat16), torch.bfloat16)
        self._learners = []
        for number in range(count):
            rank = (16, 8, 4)[number % 3]
            model.add(f"trial-{number}", Lora(r=rank, alpha=2 * rank), trainable=True)
            rates = {f"trial-{number}": Optimizer(lr=1e-4 * (1 + number))}
            self._learners.append(Learner(model, rates, {f"trial-{number}": 1000}))
        chance = random.Random(0)
        lengths = [chance.randint(length // 2, length) for _ in range(ROWS)]
        self._rows = [random_row(shape, count, count // 3, chance) for count in lengths]

    def requests(self) -> list[StepRequest]:
        return [
            StepRequest(learner, LanguageModeling(f"trial-{number}"), self._batches())
            for number, learner in enumerate(self._learners)
        ]

    def _batches(self) -> Sequence[Batch | None]:
        cut = packed_micro_batches([[ids] for ids, _ in self._rows], PASS_TOKENS, 1)[0]
        return [language_batch([self._rows[index] for index in micro], 0) for micro in cut]


def measure(shape: Shape, device: torch.device, length: int, count: int) -> tuple[Verdict, Figures]:
    """Steps a second of all trials: together, and one after the other, in turn."""
    trials = Trials(shape, device, count, length)
    ends: dict[str, list[float]] = {"together": [], "alone": []}
    peaks = {}
    for number in range(WARM + STEPS):
        for arm in list(ends)[:: 1 if number % 2 else -1]:
            requests = trials.requests()
            started = now(device)
            if arm == "together":
                step_together(requests, PASS_TOKENS)
            else:
                for request in requests:
                    request.run()
            ends[arm].append(now(device) - started)
            if device.type == "cuda":
                peaks[arm] = peak_memory(device) / 1e9
                torch.cuda.reset_peak_memory_stats(device)
    ratios = sorted(b / a for a, b in zip(ends["together"][WARM:], ends["alone"][WARM:], strict=True))
    figures: Figures = {
        "seconds together": min(ends["together"][WARM:]),
        "one by one": min(ends["alone"][WARM:]),
        "times as fast": f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f} - {ratios[-1]:.2f})",
    }
    return "measured", figures | {f"peak GB {arm}": peak for arm, peak in peaks.items()}


def check(setup: Setup) -> Iterator[Result]:
    counts = TRIALS if setup.device.type == "cuda" else TRIALS[:1]
    for shape, length, count in itertools.product(setup.shapes, LENGTHS, counts):
        case = f"{shape.name}, {ROWS} rows of up to {length} tokens, {count} trials"
        yield attempt(PART, case, partial(measure, shape, setup.device, length, count))
