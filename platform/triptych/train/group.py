"""Collectives of the ranks that train together: sums, broadcast, gather. With one rank, every call is a no-op."""

from collections.abc import Iterable, Mapping, Sequence
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
        self._names: tuple[str, ...] = ()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over ranks of equally shaped tensors, on every rank."""
        if self.together:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def sum_by_name(self, values: Mapping[str, Tensor], width: int, device: torch.device) -> dict[str, Tensor]:
        """Sums over ranks of tensors [width], any of which ranks may lack; float64, on the CPU.

        One message of numbers; only when a name turns up that no rank had before are names exchanged too.
        """
        total = self._sum_known(values, width, device)
        if total is None:
            news = {name for named in self.gather(sorted(values.keys() - set(self._names))) for name in named}
            self._names += tuple(sorted(news))
            total = self._sum_known(values, width, device)
        if total is None:
            raise RuntimeError("ranks differ in the names that they know")
        rows = zip(self._names, total, strict=True)
        return {name: row[:width] for name, row in rows if row[width] > 0}

    def table(self, values: Sequence[float], device: torch.device) -> list[list[float]]:
        """Every rank's numbers, by rank, on every rank; all have equally many."""
        rows = torch.zeros(self.size, len(values), dtype=torch.float64, device=device)
        rows[self.rank] = torch.tensor(values, dtype=torch.float64)
        return self.sum(rows).tolist()

    def all(self, condition: bool, device: torch.device) -> bool:
        """True if the condition holds on every rank."""
        return bool(self.sum(torch.tensor(float(condition), device=device)) == self.size)

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

    def _sum_known(self, values: Mapping[str, Tensor], width: int, device: torch.device) -> Tensor | None:
        """[names, width + 1]: the sums of the names that all know, and how many ranks have each; None: some rank has
        others.
        """
        table = torch.zeros(len(self._names) + 1, width + 1, dtype=torch.float64, device=device)
        for row, name in zip(table, self._names, strict=False):
            if name in values:
                row[:width] = values[name]
                row[width] = 1
        table[-1, width] = float(not values.keys() <= set(self._names))
        table = self.sum(table).cpu()
        return None if table[-1, width] > 0 else table[:-1]


def _gradient(parameter: nn.Parameter) -> Tensor:
    # A rank without rows still takes part.
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
