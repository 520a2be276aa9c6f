"""The interface of an environment."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Step:
    """What an environment makes of a turn of the policy."""

    reply: str | None = None
    """What the next turn answers; None: this turn was the last."""
    reward: float = 0.0
    """Reward of the turn; a trajectory's are added up, for the reward `environment`."""


class Episode(Protocol):
    """One trajectory's environment."""

    def step(self, text: str) -> Step | Awaitable[Step]:
        """Take a turn of the policy, as text without special tokens. What it raises ends the trajectory as failed."""


MakeEpisode = Callable[[Mapping[str, Any]], Episode]
"""From the columns of a prompt's row, the environment of one trajectory."""
