"""The interface of a reward, and what it is given of each sampled answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from triptych.forward.roles import RoleModel
from triptych.train.batch import Batch


@dataclass(frozen=True)
class Answer:
    """A sampled answer, and what the data says of its prompt."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """Ends with the stop token where there was one."""
    text: str
    """The response without special tokens and without white space at either end."""
    fields: Mapping[str, Any]
    """The other columns of the prompt's row, such as a reference answer."""


class Forward(Protocol):
    """Forward passes over the answers that are scored."""

    def __call__(self, role: str, compute: Callable[[RoleModel, Batch], Tensor]) -> Tensor:
        """`compute` of micro-batches as `role`, all ranks together: [B, ...] of each becomes [N, ...]."""


class RewardFunction(Protocol):
    """Scores answers; higher is better."""

    def score(self, answers: Sequence[Answer], forward: Forward) -> Tensor:
        """[N] finite scores. Every rank calls it with the same answers, and must get the same scores."""
