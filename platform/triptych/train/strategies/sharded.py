"""`fsdp`: parameters, gradients and optimizer state are sharded by FSDP2, one decoder layer a unit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from triptych.forward.gather import HALF
from triptych.forward.roles import RoleModel
from triptych.recipe import Optimizer
from triptych.train.group import Group
from triptych.train.strategies.base import Slice
from triptych.train.strategies.dense import Dense


class Sharded(Dense):
    """Every parameter is a DTensor, sharded over its first dimension.

    A base that lies in CPU memory comes to the GPU unit by unit: it may be larger than a GPU.
    """

    lockstep = True

    def __init__(self, model: RoleModel, optimizers: Mapping[str, Optimizer], group: Group, *, offload: bool) -> None:
        device = model.target
        mesh = init_device_mesh(device.type, (group.size,))
        policy = CPUOffloadPolicy() if offload and device.type != "cpu" else OffloadPolicy()
        options: dict[str, Any] = {"mesh": mesh, "reshard_after_forward": True, "offload_policy": policy}
        for unit in [*model.blocks(), model]:
            precision = _half(model) if model.whole and unit is not model else MixedPrecisionPolicy()
            sharded: FSDPModule = fully_shard(unit, mp_policy=precision, **options)
            sharded.set_gradient_divide_factor(1.0)  # a sum: the learner has divided
            sharded.set_force_sum_reduction_for_comms(enable=True)  # gloo knows no other
        model.spread(group.size, device)
        super().__init__(model, optimizers, group)

    def reduce_gradients(self, role: str) -> None:
        """Done in the backward pass."""

    def _full(self, tensor: Tensor) -> Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def _slice(self, name: str, tensor: Tensor) -> Slice | None:
        if not isinstance(tensor, DTensor):
            return super()._slice(name, tensor)
        local = tensor.to_local()
        return Slice(name, tuple(tensor.shape), _offset(tensor), local.reshape(-1)) if local.numel() else None

    def _put(self, target: Tensor, whole: Tensor) -> None:
        if not isinstance(target, DTensor):
            super()._put(target, whole)
            return
        local = target.to_local()
        start = _offset(target)
        local.copy_(whole.reshape(-1)[start : start + local.numel()].view(local.shape))

    def _beside(self, parameter: Tensor, whole: Tensor) -> Tensor:
        placed = super()._beside(parameter, whole)
        if not isinstance(parameter, DTensor) or not whole.ndim:
            return placed
        return distribute_tensor(placed, parameter.device_mesh, [Shard(0)], src_data_rank=None)


def _half(model: RoleModel) -> MixedPrecisionPolicy:
    """A block's float32 weights are gathered in the precision of the computation.

    Autocast alone would copy them after the gathering, and keep the copies of all blocks for the backward pass.
    """
    dtype = model.dtype if model.dtype in HALF else None
    return MixedPrecisionPolicy(
        param_dtype=dtype, reduce_dtype=torch.float32 if dtype else None, cast_forward_inputs=False
    )


def _offset(tensor: DTensor) -> int:
    """Elements before this rank's rows."""
    _, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return int(offset[0]) * _row(tensor)


def _row(tensor: DTensor) -> int:
    """Elements of one row."""
    return tensor.numel() // max(tensor.shape[0], 1)
