"""The ranks that train together: sums over them, and one rank's word for all. Alone, every call is a no-op."""

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

T = TypeVar("T")


class Group:
    """The default process group if one is initialised, else this process alone."""

    def __init__(self) -> None:
        self.together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self.rank = dist.get_rank() if self.together else 0
        self.size = dist.get_world_size() if self.together else 1

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of equally shaped tensors, on every rank."""
        if self.together:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its sum over ranks, in one flat message."""
        if not self.together:
            return
        parameters = list(parameters)
        flat = torch.cat([_gradient(p).reshape(-1) for p in parameters])
        dist.all_reduce(flat)
        pieces = flat.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)

    def broadcast(self, value: T) -> T:
        """Rank 0's value on every rank."""
        if not self.together:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank."""
        if not self.together:
            return [value]
        box: list[T | None] = [None] * self.size
        dist.all_gather_object(box, value)
        return box  # type: ignore[return-value]

    def barrier(self) -> None:
        if self.together:
            dist.barrier()


def _gradient(parameter: nn.Parameter) -> Tensor:
    # A rank without rows still takes part.
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
