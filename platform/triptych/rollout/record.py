"""The records that cross the border between the learner and the engines: tokens in, tokens out."""

from dataclasses import dataclass
from typing import Literal

BASE_VERSION = -1
"""The policy version of an engine that has had no sync: the base model alone."""


@dataclass(frozen=True)
class SampleRequest:
    """One answer to sample."""

    lease: str
    """Names the request within one call; its answer comes back under it exactly once."""
    prompt_ids: tuple[int, ...]
    seed: int
    """The answer's own random stream, whatever it is batched with."""


@dataclass(frozen=True)
class RolloutRecord:
    """One sampled answer, with what the learner must know about how it was sampled."""

    lease: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """Ends with the stop token where there was one."""
    logprobs: tuple[float, ...]
    """Of each response token under the distribution it was drawn from: after temperature and the cut of top_p."""
    versions: tuple[int, ...]
    """The policy version that drew each response token."""
    finish_reason: Literal["stop", "length"]
    seed: int
    engine: int


@dataclass(frozen=True)
class Ack:
    """What one engine says it runs after a sync."""

    version: int
    digest: str


@dataclass(frozen=True)
class SyncReport:
    seconds: float
    digest: str
    """sha256 of the adapter's bytes and config, the same on every engine."""
    mode: Literal["merged", "adapter"]
