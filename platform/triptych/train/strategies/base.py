"""The interface of a strategy: how parameters, gradients and optimizer state are spread over the ranks."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor, nn

T = TypeVar("T")

VALUE = "value"
"""Stands, in a checkpoint's names, where an optimizer state's name stands otherwise: `<role>/value/<parameter>`."""


BUFFER = "buffer"
"""Stands there for what a role's method keeps beside its parameters: `<role>/buffer/<name>`."""

LOSS_SCALE = "loss_scale"
"""Stands there for the state of a role's loss scale: `<role>/loss_scale`."""


@dataclass(frozen=True)
class Slice:
    """A contiguous piece of a tensor, flat; the pieces of all ranks give each element once."""

    name: str
    shape: tuple[int, ...]
    start: int
    values: Tensor


@dataclass(frozen=True)
class Update:
    """Result of an update: the gradients' global norm. If it is not finite, nothing was updated."""

    norm: float
    bad: str | None = None
    """The first parameter with a gradient that is not finite, where it can be told."""
    overflow: bool = False
    """Gradients were not finite under a loss scale that has been lowered since: perhaps nothing else is wrong."""


class Strategy(Protocol):
    """Gradients are sums over micro-batches and ranks: the learner has divided by the global denominators."""

    lockstep: bool
    """Forward and backward passes are collective: every rank must run equally many."""
    parameters: dict[str, dict[str, nn.Parameter]]
    """Role -> name -> the parameter as this rank holds it."""

    def run(self, role: str, compute: Callable[[], T]) -> T:
        """`compute()` with the parameters at hand."""

    def backward(self, role: str, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of one micro-batch; `last` of this step."""

    def reduce_gradients(self, role: str) -> None:
        """Sum over ranks what `backward` left to be summed."""

    def gradients(self, role: str) -> dict[str, Tensor]:
        """Full float32 gradients, after `reduce_gradients` and before `update`. Collective."""

    def update(self, role: str, rate: float) -> Update:
        """Clip, step with the learning rate `rate`, forget the gradients. Collective."""

    def discard_gradients(self, role: str) -> None:
        """Forget the gradients."""

    def values(self, role: str) -> dict[str, Tensor]:
        """Full parameters, detached. Collective."""

    def value(self, role: str, name: str) -> Tensor:
        """A full parameter, detached. Collective."""

    def assign(self, role: str, values: Mapping[str, Tensor]) -> None:
        """Overwrite parameters with full values, the same on every rank; optimizer states stay. Every rank calls it."""

    def loss_factor(self, role: str) -> float:
        """Factor that `backward` applies to a loss, before gradients are summed over the ranks."""

    def averaging(self, *, on: bool) -> None:
        """Switch parameters to their averages and back, for optimizers that train at other points than they end at."""

    def slices(self) -> list[Slice]:
        """This rank's share of `<role>/value/<name>`, `<role>/<optimizer state>/<name>`, `<role>/loss_scale`."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `slices` gave, whole tensors by name. Every rank calls it."""


def state_keys(tensors: Mapping[str, Tensor], role: str, name: str) -> list[str]:
    """Names of the optimizer states that a checkpoint has of a parameter."""
    mine = (key.split("/", 2) for key in tensors if key.startswith(f"{role}/") and key.endswith(f"/{name}"))
    return [key for _, key, rest in mine if rest == name and key != VALUE]
