"""The interface of an engine, and the records that cross it: tokens in, tokens out.

No torch and no Ray: whoever only schedules engines imports this.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from triptych import storage
from triptych.models.base import resolve_base
from triptych.models.families import takes_adapters
from triptych.models.rounded import rounded_base
from triptych.recipe.model import Model
from triptych.recipe.rollout import Engines, Sampling

BASE_VERSION = -1
"""The policy version of an engine that has had no sync: the base model alone."""

SyncMode = Literal["merged", "adapter"]
REPLACED: dict[str, Any] = {"weights": "replaced"}
"""Stands for an adapter's configuration where the bytes are new weights, by their names in the checkpoint."""

Logprobs = list[list[float]]
"""Log-probabilities in nats, [sequence][response token]."""


@dataclass(frozen=True)
class SampleRequest:
    """A request for one sampled answer to a prompt."""

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
    """Sampled tokens, the stop token included where there was one."""
    logprobs: tuple[float, ...]
    """Log-probability of each response token as it was drawn: after temperature and the cut of top_p."""
    versions: tuple[int, ...]
    """The policy version that drew each response token. All are equal: an engine takes new weights only between calls
    of `generate`, so the whole answer was drawn by the version that it had when the call began."""
    finish_reason: Literal["stop", "length"]
    seed: int
    engine: int


@dataclass(frozen=True)
class Ack:
    """An engine's acknowledgement of a sync: version and digest of the weights that it runs now."""

    version: int
    digest: str


@dataclass(frozen=True)
class EnginePlan:
    """Settings that every engine of a pool has in common."""

    model_dir: str
    """Hugging Face folder, or where there is no `base` the URL of a committed one."""
    dtype: str
    rollout: Engines
    mode: SyncMode
    max_model_len: int
    """Longest prompt plus answer, in tokens."""
    lora_r: int
    """Largest rank of the adapters to come."""
    stop_token_ids: tuple[int, ...]
    base: Model | None = None
    """The model in `model_dir`: how it is rounded, and where nodes that do not have that folder find it. None: a whole
    model that was trained."""
    field: str = "rollout"
    """Recipe field below the stage that sets the pool, for messages."""

    def here(self) -> "EnginePlan":
        """The plan with the model's folder on this node, its weights rounded as the learner's are."""
        if self.base is None:
            return replace(self, model_dir=str(storage.local_copy(self.model_dir)))
        folder = Path(self.model_dir)
        found = folder if folder.is_dir() else resolve_base(self.base)
        return replace(self, model_dir=str(rounded_base(found, self.base.quantization)))


class Engine(ABC):
    """One language model in this process; its weights are replaced between calls, never during one.

    A kind of engine is a subclass in a file of its own, and a line of `engines.table`.
    """

    @abstractmethod
    def __init__(self, index: int, plan: EnginePlan) -> None:
        """Load the base model. `index` is the engine's number in its pool, which its records carry."""

    @classmethod
    @abstractmethod
    def environment(cls, plan: EnginePlan) -> dict[str, str]:
        """Environment variables that the process needs before it starts."""

    @abstractmethod
    def sync(self, adapter: bytes, config: dict[str, Any], version: int) -> Ack:
        """Replace the policy: the content of a peft adapter's safetensors file and its configuration.

        Nothing of the old weights answers afterwards. The digest of the answer is `adapter_digest` of what was loaded.

        Raises:
            RunError: the adapter has parts that this engine would leave out.
        """

    @abstractmethod
    def replace(self, buckets: Iterable[bytes], version: int) -> Ack:
        """Replace weights: each bucket is the content of a safetensors file, by the names of the checkpoint.

        What no bucket has is the checkpoint's own, whatever was replaced before. One bucket is asked for after the
        other, so that not all are held at once. The digest of the answer is that of `Digested` over what was loaded.

        Raises:
            RunError: a bucket has a tensor that this engine would leave out.
        """

    @abstractmethod
    def generate(self, requests: list[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        """One record for each request, in their order; a seed gives the same answer whatever it is batched with."""

    @abstractmethod
    def logprobs(self, sequences: list[list[int]], prompt_lens: list[int]) -> Logprobs:
        """Teacher-forced log-probabilities of the tokens after each prompt, at temperature 1, with the weights of now.

        Args:
            sequences: token ids of each prompt and its answer, fewer than the plan's `max_model_len`: vLLM samples
                one more token behind them.
            prompt_lens: tokens of each prompt.
        """


def resolve_mode(engines: Engines, dtype: str, model_dir: str) -> SyncMode:
    """The way in which new weights reach an engine.

    `auto` takes the adapter on a GPU, which hardly notices it where merging moves all weights, and in bfloat16, where
    merging loses what is too small to move a weight (tests/bench/sync.py), if CPU engines apply LoRA to the base's
    family; else a CPU samples faster with merged weights.
    """
    if engines.sync != "auto":
        return engines.sync
    narrow = dtype == "bfloat16" and takes_adapters(Path(model_dir))
    return "adapter" if engines.gpus or narrow else "merged"


def adapter_digest(adapter: bytes, config: dict[str, Any]) -> str:
    """The sha256 over an adapter's safetensors content and canonical configuration."""
    digest = _digest_of(config)
    digest.update(adapter)
    return digest.hexdigest()


class Digested:
    """Buckets that pass through, one at a time, and the sha256 over those that have."""

    def __init__(self, buckets: Iterable[bytes]) -> None:
        self._buckets, self._digest = buckets, _digest_of(REPLACED)

    def __iter__(self) -> Iterator[bytes]:
        for bucket in self._buckets:
            self._digest.update(bucket)
            yield bucket

    @property
    def digest(self) -> str:
        """Of one bucket it is the `adapter_digest` of its bytes and `REPLACED`."""
        return self._digest.hexdigest()


def _digest_of(config: dict[str, Any]) -> Any:
    return hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
