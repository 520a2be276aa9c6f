"""The interface of a method on a model: one attachment for each role that uses it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

Prefix = Callable[[nn.Module, Tensor, int], tuple[Tensor, Tensor]]
"""An attention module, its keys [..., K, T, D], n -> keys and values [n, K, P, D] that stand before n rows of them."""


class Attachment(ABC):
    """Parameters of one method on a model, for one role; trained ones are float32, float64 on a float64 base."""

    prompt: nn.Module | None = None
    """Called in each pass; gives the embeddings [P, d] that stand before every row (prompt tuning, P-tuning)."""
    prefix_length: int = 0
    """Keys and values that stand before every row inside attention (prefix tuning, P-tuning v2): P."""
    adaptive: bool = False
    """`penalize` and `adapt` do something: the learner calls them once an optimizer step; and `settle`, at the end."""

    @abstractmethod
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters, by names without the role: those of peft's file where peft has a format."""

    def buffers(self) -> dict[str, Tensor]:
        """Tensors of its state that are not trained: equal on every rank, whole under every strategy."""
        return {}

    @abstractmethod
    def activate(self, on: bool) -> None:
        """Be a part of the model, or not. `requires_grad` stays as it is."""

    def prefix(self) -> Prefix | None:
        """Function that gives each layer its keys and values; called in each pass, before the model."""
        return None

    def go_on(self) -> None:  # noqa: B027 - most methods do the same whatever they start from
        """Learn that its tensors are those that another training ended with."""

    def begin(self, step: int) -> None:  # noqa: B027 - most methods do the same in every step
        """Prepare optimizer step `step` (from 0), which computes next; called on every rank alike."""

    def penalize(self, factor: float) -> None:  # noqa: B027 - most methods have no penalty
        """Let backward passes add the gradient of the method's penalty times `factor`, from now on; 0: no longer."""

    def adapt(
        self, step: int, total: int, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Parameters to overwrite after the update of optimizer step `step` (from 0) of `total`.

        `values` after the update, `gradients` of it: whole tensors, as `parameters` names them.
        """
        return {}

    def settle(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Parameters to overwrite after the last step, whichever it was, so that what comes out is what was asked for.

        `values`: whole tensors, as `parameters` names them.
        """
        return {}

    def metrics(self) -> dict[str, float]:
        """Metrics of the method after an optimizer step, equal on every rank."""
        return {}


@dataclass(frozen=True)
class Export:
    """Contents of a method's files; where peft or transformers has a format, it computes the same with them."""

    method: Any
    """The recipe's method under which the weights load: another than was trained where training needed more."""
    weights: dict[str, Tensor]
    config: Any = None
    """peft's configuration; None: peft has no format for it."""
    peft: dict[str, Tensor] | None = None
    """The tensors of peft's file where they are not `weights`, which then lie beside it in prefix.safetensors."""
