"""Memory and seconds of steps that `plan` predicts: full micro-batches of the longest rows, of many configurations.

Only measured here; `python -m plan.gpu_table FILE` (tests/bench) holds them against predictions, which take longer.
"""

from collections.abc import Iterator
from functools import partial

import torch

from plan.configurations import Configuration, configurations, gpu_configurations
from result import Figures, Result, Verdict, attempt, now
from shapes import Setup
from triptych.measure.dry_run import accumulated, dry_run, random_base
from triptych.plan.memory import micro_batch
from triptych.recipe.work_shape import MicroBatch

PART = "planned"
WARM = MicroBatch(tokens=64, length=32)
STEPS = 4
"""The first is not timed."""


def measure(configuration: Configuration, device: torch.device, steps: int = STEPS) -> tuple[Verdict, Figures]:
    """Bytes that torch reserves and that tensors need at the peak, beyond the loaded base; seconds of a step."""
    torch.manual_seed(0)
    recipe = configuration.recipe()
    stage = recipe.trained["stage"]
    with device:
        base = random_base(recipe.model)
    reserved, allocated = _held(device)
    run = dry_run(recipe, "stage", base, configuration.strategy)
    run.step(WARM)
    limit, seconds = micro_batch(stage), []
    for _ in range(steps):
        started = now(device)
        run.step(limit, accumulated(stage, limit))
        seconds.append(now(device) - started)
    figures: Figures = {"key": configuration.key, "seconds": min(seconds[1:] or seconds)}
    if device.type == "cuda":
        figures |= {
            "loaded": allocated,
            "reserved": torch.cuda.max_memory_reserved(device) - reserved,
            "allocated": torch.cuda.max_memory_allocated(device) - allocated,
        }
    return "measured", figures


def check(setup: Setup) -> Iterator[Result]:
    on_gpu = setup.device.type == "cuda"
    chosen = gpu_configurations() if on_gpu else configurations()[:1]  # without a GPU they would take hours
    for one in chosen:
        yield attempt(PART, one.name, partial(measure, one, setup.device, STEPS if on_gpu else 1))


def _held(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return 0, 0
    torch.cuda.empty_cache()  # what making the weights needed
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_reserved(device), torch.cuda.memory_allocated(device)
