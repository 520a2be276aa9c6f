"""The Ray actor around one engine."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray import ObjectRef

from triptych.engines.base import REPLACED, Ack, Engine, EnginePlan, Logprobs, RolloutRecord, SampleRequest
from triptych.recipe.rollout import Sampling


@dataclass(frozen=True)
class EngineProcess:
    """Node and cores of an engine's process."""

    node_id: str
    pid: int
    cores: tuple[int, ...]
    """Cores that the process may use."""


class EngineActor:
    """An actor around one engine that `load` loads: waiting for resources and loading have timeouts of their own."""

    def __init__(self, index: int, kind: type[Engine], plan: EnginePlan) -> None:
        self._index, self._kind, self._plan = index, kind, plan
        self._engine: Engine

    @ray.method
    def place(self) -> EngineProcess:
        """Node, process id and cores of the actor."""
        return EngineProcess(
            ray.get_runtime_context().get_node_id(), os.getpid(), tuple(sorted(os.sched_getaffinity(0)))
        )

    @ray.method
    def load(self, cores: tuple[int, ...]) -> None:
        """Start the engine on these cores (all, if empty)."""
        if cores:
            os.sched_setaffinity(0, cores)  # inherited by every thread that the engine starts from here
        self._engine = self._kind(self._index, self._plan)

    @ray.method
    def sync(self, parts: Sequence[ObjectRef[bytes]], config: dict[str, Any], version: int) -> Ack:
        """Replace the engine's policy by an adapter, or its weights by those of buckets, fetched one at a time."""
        if config == REPLACED:
            return self._engine.replace(map(ray.get, parts), version)
        return self._engine.sync(ray.get(parts[0]), config, version)

    @ray.method
    def generate(self, requests: list[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        """Sample an answer to each request; see `Engine.generate`."""
        return self._engine.generate(requests, sampling)

    @ray.method
    def logprobs(self, sequences: list[list[int]], prompt_lens: list[int]) -> Logprobs:
        """Teacher-forced log-probabilities; see `Engine.logprobs`."""
        return self._engine.logprobs(sequences, prompt_lens)
