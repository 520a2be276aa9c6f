"""Time one configuration, in a process of its own: full micro-batches of the longest rows, as Ray Train's workers do.

Seconds of a step, the least of some: by the wall, and of the processor's time for each thread.
"""

import json
import sys
import threading
import time
from pathlib import Path

import torch

from harness import emit
from plan.configurations import Configuration
from triptych.measure.dry_run import accumulated, dry_run, random_base
from triptych.plan.memory import micro_batch

STEPS = 3


def main() -> None:
    configuration = Configuration(**json.loads(Path(sys.argv[1]).read_text()))
    found: dict[str, float] = {}
    thread = threading.Thread(target=lambda: found.update(timed(configuration)))
    thread.start()
    thread.join()
    if not found:
        sys.exit(1)  # the thread has shown why
    emit(found)


def timed(configuration: Configuration) -> dict[str, float]:
    torch.manual_seed(0)
    recipe = configuration.recipe()
    stage = recipe.trained["stage"]
    run = dry_run(recipe, "stage", random_base(recipe.model), "single")
    limit, walls, cpus = micro_batch(stage), [], []
    for _ in range(STEPS + 1):  # the first one makes buffers
        wall, cpu = time.perf_counter(), time.process_time()
        run.step(limit, accumulated(stage, limit))
        walls.append(time.perf_counter() - wall)
        cpus.append((time.process_time() - cpu) / torch.get_num_threads())
    return {"wall_seconds": min(walls[1:]), "cpu_seconds": min(cpus[1:])}


if __name__ == "__main__":
    main()
