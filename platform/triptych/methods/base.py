"""What a method adds to a model: one attachment for each role that uses it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Prefix = Callable[[nn.Module, Tensor, int], tuple[Tensor, Tensor]]
"""An attention module, its keys [..., K, T, D], n -> keys and values [n, K, P, D] that stand before n rows of them."""


class Attachment(ABC):
    """What one method has added to a model for one role; trainable parts are float32, float64 on a float64 base."""

    prompt: nn.Module | None = None
    """Called in each pass; gives the embeddings [P, d] that stand before every row (prompt tuning, P-tuning)."""
    prefix_length: int = 0
    """Keys and values that stand before every row inside attention (prefix tuning, P-tuning v2): P."""
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

    def prefix(self) -> Prefix | None:
        """Called in each pass, before the model: what gives them to each layer."""
        return None

    def begin(self, step: int) -> None:  # noqa: B027 - most methods do the same in every step
        """Optimizer step `step`, from 0, is about to compute; the same on every rank."""

    def penalize(self, factor: float) -> None:  # noqa: B027 - most methods have no penalty
        """From now on, let a backward pass add the gradient of the method's penalty times `factor`; 0: no longer."""

    def adapt(
        self, step: int, total: int, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Parameters to overwrite after the update of optimizer step `step` (from 0) of `total`.

        `values` after the update, `gradients` of it: whole tensors, as `parameters` names them.
        """
        return {}

    def metrics(self) -> dict[str, float]:
        """What is worth a look after each optimizer step, the same on every rank."""
        return {}


@dataclass(frozen=True)
class Export:
    """What a method's files hold: plain peft or transformers, where these have a format, compute the same with it."""

    method: Any
    """The recipe's method under which the weights load: another than was trained where training needed more."""
    weights: dict[str, Tensor]
    config: Any = None
    """peft's configuration; None: peft has no format for it."""
    peft: dict[str, Tensor] | None = None
    """The tensors of peft's file where they are not `weights`, which then lie beside it in prefix.safetensors."""
