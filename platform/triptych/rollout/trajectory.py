"""What happened in answer to a prompt: the tokens behind it, and which of them the policy drew."""

from dataclasses import dataclass
from typing import Literal

from triptych.engines.base import RolloutRecord


@dataclass(frozen=True)
class Trajectory:
    """The tokens behind a prompt, drawn by the policy in one turn or in several; an environment wrote the others."""

    lease: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """All tokens behind the prompt, stop tokens included where there were such."""
    drawn: tuple[bool, ...]
    """For each of them, whether the policy drew it."""
    logprobs: tuple[float, ...]
    """Log-probability of each drawn token: after temperature and the cut of top_p."""
    versions: tuple[int, ...]
    """The policy version that drew each drawn token."""
    finish_reason: Literal["stop", "length"]
    """How the last turn ended."""
    seed: int
    turns: tuple[tuple[int, int], ...] = ()
    """First token of each turn of the policy within `response_ids`, and the one behind its last."""
    earned: float = 0.0
    """Sum of the rewards that the environment gave."""
    failed: str | None = None
    """Why the environment could not go on; None: it could."""

    @classmethod
    def of(cls, record: RolloutRecord) -> "Trajectory":
        """An answer in one turn."""
        count = len(record.response_ids)
        return cls(
            record.lease,
            record.prompt_ids,
            record.response_ids,
            (True,) * count,
            record.logprobs,
            record.versions,
            record.finish_reason,
            record.seed,
            ((0, count),),
        )

    @property
    def last_turn(self) -> tuple[int, ...]:
        """The tokens of the policy's last turn."""
        start, end = self.turns[-1]
        return self.response_ids[start:end]
