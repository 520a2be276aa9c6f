"""`single` and `ddp`: whole parameters on every rank. `ddp` sums gradients in one flat message a step.

For adapters one message of some megabytes is quicker than buckets that overlap with the backward pass.
"""

import math
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from triptych.forward.roles import RoleModel
from triptych.recipe import Optimizer
from triptych.train.group import Group
from triptych.train.loss_scale import LossScale
from triptych.train.optimizer import averaging, build_optimizer
from triptych.train.strategies.base import LOSS_SCALE, VALUE, Slice, Update, state_keys

T = TypeVar("T")


class Dense:
    """Parameters and optimizers of torch. What sharding changes, `Sharded` overrides."""

    lockstep = False

    def __init__(self, model: RoleModel, optimizers: Mapping[str, Optimizer], group: Group) -> None:
        self._model = model
        self._group = group
        self._config = dict(optimizers)
        self.parameters = {role: model.parameters_of(role) for role in optimizers}
        self._optimizers = {
            role: build_optimizer(self.parameters[role], c, model.rates_of(role)) for role, c in optimizers.items()
        }
        self._scales = {role: LossScale(enabled=model.dtype == torch.float16) for role in optimizers}

    def run(self, role: str, compute: Callable[[], T]) -> T:
        """`compute()` with the parameters at hand."""
        return self._model(compute)

    def backward(self, role: str, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-batch; `last` of this step."""
        (loss * self._scales[role].value).backward()

    def reduce_gradients(self, role: str) -> None:
        """Sum gradients over ranks."""
        self._group.sum_gradients(self.parameters[role].values())

    def gradients(self, role: str) -> dict[str, Tensor]:
        """Full float32 gradients, after `reduce_gradients` and before `update`."""
        scale = self._scales[role].value
        return {name: self._full(_gradient(p)) / scale for name, p in self.parameters[role].items()}

    def update(self, role: str, rate: float) -> Update:
        """Clip, step with the learning rate `rate`, forget the gradients."""
        gradients = [p.grad for p in self.parameters[role].values() if p.grad is not None]
        scale = self._scales[role]
        norm = float(self._full(get_total_norm(gradients))) / scale.value
        if not math.isfinite(norm):
            bad = self._first_bad(role)
            self.discard_gradients(role)
            return Update(norm, bad, overflow=scale.shrink())
        clip = min(1.0, self._config[role].max_grad_norm / (norm + 1e-6))
        if clip / scale.value != 1.0:
            torch._foreach_mul_(gradients, clip / scale.value)
        optimizer = self._optimizers[role]
        for param_group in optimizer.param_groups:
            param_group["lr"] = rate * param_group["lr_scale"]
        optimizer.step()
        self.discard_gradients(role)
        scale.grow()
        return Update(norm)

    def discard_gradients(self, role: str) -> None:
        """Forget the gradients."""
        self._optimizers[role].zero_grad(set_to_none=True)

    def values(self, role: str) -> dict[str, Tensor]:
        """Full parameters, detached."""
        return {name: self.value(role, name) for name in self.parameters[role]}

    def value(self, role: str, name: str) -> Tensor:
        """A full parameter, detached."""
        return self._full(self.parameters[role][name].detach())

    @torch.no_grad()
    def assign(self, role: str, values: Mapping[str, Tensor]) -> None:
        """Overwrite parameters with full values; optimizer states stay."""
        for name, value in values.items():
            self._put(self.parameters[role][name], value)

    def loss_factor(self, role: str) -> float:
        """Factor of a loss in `backward`, before gradients are summed over the ranks."""
        return self._scales[role].value

    def averaging(self, *, on: bool) -> None:
        """Switch parameters to their averages and back."""
        for optimizer in self._optimizers.values():
            averaging(optimizer, on=on)

    def slices(self) -> list[Slice]:
        """This rank's share of parameters, optimizer states and loss scale."""
        return [piece for name, tensor in self._tensors() if (piece := self._slice(name, tensor)) is not None]

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `slices` gave, whole tensors by name."""
        for role, named in self.parameters.items():
            state = self._optimizers[role].state
            for name, parameter in named.items():
                self._put(parameter, tensors[f"{role}/{VALUE}/{name}"])
                for key in state_keys(tensors, role, name):
                    state[parameter][key] = self._beside(parameter, tensors[f"{role}/{key}/{name}"])
            self._scales[role].load_state(tensors[f"{role}/{LOSS_SCALE}"].reshape(-1).tolist())

    def _tensors(self) -> list[tuple[str, Tensor]]:
        """Every tensor of a checkpoint, by its name there."""
        found: list[tuple[str, Tensor]] = []
        for role, named in self.parameters.items():
            found.append((f"{role}/{LOSS_SCALE}", torch.tensor(self._scales[role].state(), dtype=torch.float64)))
            state = self._optimizers[role].state
            for name, parameter in named.items():
                found.append((f"{role}/{VALUE}/{name}", parameter.detach()))
                found += [
                    (f"{role}/{k}/{name}", v) for k, v in state.get(parameter, {}).items() if isinstance(v, Tensor)
                ]
        return found

    def _first_bad(self, role: str) -> str | None:
        for name, gradient in self.gradients(role).items():
            if not torch.isfinite(gradient).all():
                return name
        return None

    def _full(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor that may be sharded."""
        return tensor

    def _slice(self, name: str, tensor: Tensor) -> Slice | None:
        """This rank's piece; None where it has none."""
        return Slice(name, tuple(tensor.shape), 0, tensor.reshape(-1)) if self._group.rank == 0 else None

    def _put(self, target: Tensor, whole: Tensor) -> None:
        target.copy_(whole)

    def _beside(self, parameter: Tensor, whole: Tensor) -> Tensor:
        """A stored tensor of a parameter's optimizer state, in its own precision, where the parameter is."""
        return whole.to(parameter.device, copy=True)


def _gradient(parameter: nn.Parameter) -> Tensor:
    """Gradient of a parameter; zeros where nothing flowed."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
