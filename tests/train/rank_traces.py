"""Run by torchrun, or alone, in the tests: losses of 20 steps, and again from the checkpoint at step 10.

Arguments: model folder, output folder, strategy, and optionally a checkpoint folder to go on from in place of its own.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from gradient_cases import CASES, make_learner, make_model

from triptych.train import checkpoint
from triptych.train.batch import Batch
from triptych.train.learner import Learner

STEPS, SAVED = 20, 10
OBJECTIVE, BATCH = CASES["language"]


def make(folder: Path, strategy: str, method: str) -> Learner:
    model = make_model(folder, torch.float32, roles=("policy",), method=method)
    return make_learner(model, strategy=strategy)


def step(learner: Learner, number: int) -> float:
    """Six of the eight rows, others at each step; rank 0 has one more micro-batch than rank 1."""
    rows = [(number + k) % 8 for k in range(6)]
    shares: list[list[list[int]]] = [[rows[:2], rows[2:3]], [rows[3:], []]] if learner.group.size == 2 else [[rows]]
    mine = shares[learner.group.rank]
    batches: list[Batch | None] = [BATCH(share, torch.float32) if share else None for share in mine]
    return learner.step(OBJECTIVE, batches).metrics["loss"]


def main() -> None:
    folder, out, strategy = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    for method in ("lora", "full"):
        own = f"{out}/{strategy}-{method}"
        first = make(folder, strategy, method)
        losses = []
        writer = checkpoint.Writer(own, first.group)
        for number in range(STEPS):
            losses.append(step(first, number))
            if number + 1 == SAVED:
                state = first.state()
                writer.save(SAVED, state.slices, state.numbers)
        writer.wait()
        first.group.barrier()

        saved = checkpoint.latest(f"{sys.argv[4]}-{method}" if len(sys.argv) > 4 else own)
        assert saved is not None
        second = make(folder, strategy, method)
        second.load_state(saved.tensors, saved.state)
        resumed = [step(second, number) for number in range(SAVED, STEPS)]
        if second.group.rank == 0:
            result = {"losses": losses, "resumed": resumed}
            Path(f"{own}.json").write_text(json.dumps(result))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


main()
