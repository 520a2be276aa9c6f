"""The interfaces of rewards, and what they are given of each sampled answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from triptych.forward.roles import RoleModel
from triptych.rewards.asking import Asking, Failed
from triptych.train.batch import Batch

Given = float | None | Failed
"""A score; None where the reward does not judge the answer; or why there is none."""


@dataclass(frozen=True)
class Answer:
    """A sampled answer, and what the data says of its prompt."""

    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """Ends with the stop token where there was one; of several turns, those of the last one."""
    text: str
    """The response without special tokens and without white space at either end; of several turns, the last one."""
    fields: Mapping[str, Any]
    """The other columns of the prompt's row, such as a reference answer."""
    prompt: Sequence[Mapping[str, Any]] = ()
    """The prompt's messages, each with `role` and `content`."""
    group: int = 0
    """Equal for the answers to one prompt."""
    earned: float = 0.0
    """Sum of the rewards that the environment gave."""
    earlier: int = 0
    """Tokens of the turns before the last one."""

    @property
    def tokens(self) -> int:
        """All tokens that the policy drew."""
        return self.earlier + len(self.response_ids)

    @property
    def prompt_text(self) -> str:
        """Contents of the prompt's messages, a blank line between two."""
        return "\n\n".join(str(message["content"]) for message in self.prompt)


class Forward(Protocol):
    """Forward passes over the answers that are scored."""

    def __call__(self, role: str, compute: Callable[[RoleModel, Batch], Tensor]) -> Tensor:
        """`compute` of micro-batches as `role`, all ranks together: [B, ...] of each becomes [N, ...]."""


class RewardFunction(Protocol):
    """Scores answers by passes of the learner; higher is better."""

    def score(self, answers: Sequence[Answer], forward: Forward) -> Tensor:
        """[N] finite scores. Every rank calls it with the same answers, and must get the same scores."""


class Scorer(Protocol):
    """Scores answers outside the learner; higher is better. The first rank alone asks it, and tells the others."""

    async def score(self, answers: Sequence[Answer], asking: Asking) -> Sequence[Given]:
        """A score of each answer. What may raise or take long is done by `asking`, which gives the reason instead."""
