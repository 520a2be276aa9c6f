"""Each optimizer on a model that two ranks share by FSDP2, or that one process has whole."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from triptych.recipe import Optimizer
from triptych.train.optimizer import averaging, build_optimizer, learning_rate


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().contiguous()


def save_steps(configs: Mapping[str, Optimizer], steps: int, out: Path) -> None:
    """Weights, state and average after some steps; rank 0 saves them as `<case>.safetensors`."""
    ids = torch.arange(24)[None]
    for case, config in configs.items():
        model = build()
        before = {name: whole(parameter).clone() for name, parameter in model.named_parameters()}
        if dist.is_initialized():
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for layer in model:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        named = dict(model.named_parameters())
        optimizer = build_optimizer(named, config)
        for step in range(steps):
            (model(ids) - step).square().mean().backward()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, steps) * group["lr_scale"]
            optimizer.step()
            optimizer.zero_grad()
        found = {f"value/{name}": whole(parameter) for name, parameter in named.items()}
        found |= {f"{key}/{name}": whole(v) for name, p in named.items() for key, v in optimizer.state[p].items()}
        averaging(optimizer, on=True)
        found |= {f"average/{name}": whole(parameter).clone() for name, parameter in named.items()}
        averaging(optimizer, on=False)
        assert not any(torch.equal(found[f"value/{name}"], tensor) for name, tensor in before.items())
        if not dist.is_initialized() or dist.get_rank() == 0:
            save_file({name: tensor.clone() for name, tensor in found.items()}, out / f"{case}.safetensors")


def build() -> nn.Sequential:
    torch.manual_seed(0)
    # 97 rows: two shards of unequal size.
    return nn.Sequential(nn.Embedding(32, 64), nn.Linear(64, 97), nn.LayerNorm(97), nn.Linear(97, 64)).double()
