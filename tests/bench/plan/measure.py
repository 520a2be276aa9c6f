"""Measure one configuration, in a process of its own: a small step, then one at its worst.

What counts is the peak of the process less what was resident once the base was loaded, its rank's share of it. Like Ray
Train's workers, it trains in a thread beside the main one, with the allocator set as theirs.
"""

import json
import os
import sys
import threading
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import PreTrainedModel

from harness import emit
from plan.configurations import Configuration
from triptych.forward.process_memory import resident_memory
from triptych.measure.dry_run import accumulated, dry_run, random_base
from triptych.models.base import load_causal_lm, resolve_base
from triptych.plan.memory import micro_batch
from triptych.recipe import Recipe
from triptych.recipe.work_shape import MicroBatch

WARM = MicroBatch(tokens=64, length=32)
CPU = torch.device("cpu")


def main() -> None:
    rank = int(os.environ.get("RANK", "0"))
    configuration = Configuration(**json.loads(Path(sys.argv[1]).read_text()))
    if configuration.ranks > 1:
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=configuration.ranks)
    found: dict[str, float] = {}
    thread = threading.Thread(target=lambda: found.update(grown(configuration)))
    thread.start()
    thread.join()
    if dist.is_initialized():
        dist.destroy_process_group()
    if not found:
        sys.exit(1)  # the thread has shown why
    if rank == 0:
        emit(found)


def grown(configuration: Configuration) -> dict[str, float]:
    """Bytes: `loaded`, resident before anything is attached, and by how much the process grows from there at most."""
    torch.manual_seed(0)
    recipe = configuration.recipe()
    base = _loaded(recipe)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    run = dry_run(recipe, "stage", base, configuration.strategy)
    del base
    before, attached = run.learner.model.loaded_bytes, resident_memory(CPU)
    run.step(WARM)
    warm = _peak()
    limit = micro_batch(recipe.trained["stage"])
    run.step(limit, accumulated(recipe.trained["stage"], limit))
    return {"loaded": before, "attached": attached - before, "warm": warm - before, "grown": _peak() - before}


def _loaded(recipe: Recipe) -> PreTrainedModel:
    model = recipe.model
    if Path(model.base).is_dir():
        return random_base(model)
    return load_causal_lm(resolve_base(model), getattr(torch, model.dtype), quantization=model.quantization)


def _peak() -> int:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


if __name__ == "__main__":
    main()
