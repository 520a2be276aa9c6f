"""Run by torchrun in the tests: gradients of every strategy, with unequal shares of a batch; rank 0 saves them."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from gradient_cases import CASES, gradients, make_learner, make_model
from safetensors.torch import save_file

SHARES = ([[0, 1, 2], [3, 4]], [[5, 6, 7], None])  # unequal, and one empty micro-batch

folder, out, strategies = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3].split(",")
torch.set_num_threads(1)
dist.init_process_group("gloo")
for strategy in strategies:
    dtype = torch.float32 if strategy.startswith("zero") else torch.float64
    for method in ("lora", "full"):
        for case, (objective, make) in CASES.items():
            model = make_model(folder, dtype, roles=(objective.role,), method=method)
            learner = make_learner(model, strategy=strategy)
            batches = [make(share, dtype) if share else None for share in SHARES[dist.get_rank()]]
            found = gradients(learner, objective, batches)
            if dist.get_rank() == 0:
                save_file(
                    {k: v.contiguous() for k, v in found.items()}, out / f"{strategy}-{method}-{case}.safetensors"
                )
dist.barrier()
dist.destroy_process_group()
