"""Run by torchrun in the tests: two ranks with unequal shares of a batch; rank 0 saves the gradients."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from test_learner import CASES, gradients, make_learner, make_model  # type: ignore[import-not-found]

folder, out = Path(sys.argv[1]), Path(sys.argv[2])
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank = dist.get_rank()
learner = make_learner(make_model(folder, torch.float64))
for case, (objective, make) in CASES.items():
    shares = ([[0, 1, 2], [3, 4]], [[5, 6, 7], None])[rank]  # unequal, and one empty micro-batch
    batches = [make(share, torch.float64) if share else None for share in shares]
    found = gradients(learner, objective, batches)
    if rank == 0:
        save_file({name: tensor.contiguous() for name, tensor in found.items()}, out / f"{case}.safetensors")
dist.destroy_process_group()
