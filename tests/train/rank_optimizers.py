"""Run by torchrun in the tests: each optimizer on an FSDP2 model; rank 0 saves weights, state and average."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from test_optimizer import CONFIGS, STEPS
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from triptych.train.optimizer import averaging, build_optimizer, learning_rate


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().contiguous()


out = Path(sys.argv[1])
out.mkdir(exist_ok=True)
torch.set_num_threads(1)
dist.init_process_group("gloo")
mesh = init_device_mesh("cpu", (dist.get_world_size(),))
ids = torch.arange(24)[None]
for case, config in CONFIGS.items():
    torch.manual_seed(0)
    # 97 rows: two shards of unequal size.
    model = nn.Sequential(nn.Embedding(32, 64), nn.Linear(64, 97), nn.LayerNorm(97), nn.Linear(97, 64)).double()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    named = dict(model.named_parameters())
    optimizer = build_optimizer(named, config)
    for step in range(STEPS):
        (model(ids) - step).square().mean().backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, STEPS) * group["lr_scale"]
        optimizer.step()
        optimizer.zero_grad()
    found = {f"value/{name}": whole(parameter) for name, parameter in named.items()}
    found |= {f"{key}/{name}": whole(v) for name, p in named.items() for key, v in optimizer.state[p].items()}
    averaging(optimizer, on=True)
    found |= {f"average/{name}": whole(parameter).clone() for name, parameter in named.items()}
    averaging(optimizer, on=False)
    assert not any(torch.equal(found[f"value/{name}"], tensor) for name, tensor in before.items())
    if dist.get_rank() == 0:
        save_file({name: tensor.clone() for name, tensor in found.items()}, out / f"{case}.safetensors")
dist.destroy_process_group()
