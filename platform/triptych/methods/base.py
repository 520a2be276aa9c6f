"""What a method adds to a model: one attachment for each role that uses it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor, nn

T = TypeVar("T")


class Attachment(ABC):
    """What one method has added to a model for one role; trainable parts are float32, float64 on a float64 base."""

    prompt: nn.Module | None = None
    """Called in each pass; gives the embeddings [P, d] that stand before every row (prompt tuning, P-tuning)."""
    prefix_length: int = 0
    """Keys and values that stand before every row inside attention (prefix tuning, P-tuning v2)."""
    adaptive: bool = False
    """`penalize` and `adapt` do something: the learner calls them once an optimizer step."""

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by names that do not hold the role: peft's file names where peft has a format."""

    def buffers(self) -> dict[str, Tensor]:
        """What it keeps beside: tensors, the same on every rank, whole under every strategy; part of its state."""
        return {}

    @abstractmethod
    def activate(self, on: bool) -> None:
        """Be a part of the model, or not. `requires_grad` stays as it is."""

    def penalize(self, factor: float) -> None:  # noqa: B027 - most methods have no penalty
        """From now on, let a backward pass add the gradient of the method's penalty times `factor`; 0: no longer."""

    def adapt(
        self, step: int, total: int, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Parameters to overwrite after the update of optimizer step `step` (from 0) of `total`.

        `values` after the update, `gradients` of it: whole tensors, as `parameters` names them.
        """
        return {}


def without_prefix(named: Mapping[str, T], prefix: str) -> dict[str, T]:
    """The entries whose names begin with `prefix`, which is taken off."""
    return {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
