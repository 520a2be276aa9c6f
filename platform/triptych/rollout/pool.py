"""The handle of a pool of rollout engines.

The driver of a stage starts the pool and passes the handle into the training workers: engines then outlive a worker's
restart. The coordinator behind it owns the engines, so that none survives it.
"""

import contextlib
from collections.abc import Iterable
from typing import Any, TypeVar, cast

import ray
from ray import ObjectRef
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayTaskError

from triptych.engines.base import (
    REPLACED,
    Digested,
    EnginePlan,
    Logprobs,
    RolloutRecord,
    SampleRequest,
    adapter_digest,
    resolve_mode,
)
from triptych.engines.table import ENGINES
from triptych.errors import RunError, UserError
from triptych.recipe.model import Model
from triptych.recipe.rollout import Engines, Sampling
from triptych.rollout.coordinator import PLACEMENT_TIMEOUT_S, Coordinator, SyncReport

T = TypeVar("T")


class RolloutPool:
    """Picklable handle of the coordinator; whoever started the pool closes it."""

    def __init__(self, coordinator: type[Coordinator]) -> None:
        """`coordinator`: a handle, typed as the class behind it: `coordinator.method.remote(...)`."""
        self._coordinator = coordinator

    @classmethod
    def start(
        cls,
        model_dir: str,
        dtype: str,
        rollout: Engines,
        max_model_len: int,
        lora_r: int,
        stop_token_ids: list[int],
        placement_timeout_s: float = PLACEMENT_TIMEOUT_S,
        base: Model | None = None,
        engine: str = "vllm",
        field: str = "rollout",
    ) -> "RolloutPool":
        """A pool whose engines all answer; they run the base model until the first `sync`.

        Args:
            model_dir: Hugging Face folder that every engine's node can read, or else resolves from `base`; without
                `base` it may be the URL of a committed folder.
            dtype: of the engines' weights and computation.
            max_model_len: longest prompt plus answer, in tokens.
            lora_r: rank of the adapters to come.
            stop_token_ids: the only tokens that end an answer.
            placement_timeout_s: longest wait for a place in the cluster.
            base: the model in `model_dir`: how it is rounded, and where nodes that do not have that folder find it.
            engine: a kind of `engines.table`.
            field: recipe field below the stage that sets the pool, for messages.

        Raises:
            RunError: resources were missing for `placement_timeout_s`, or an engine did not start.
        """
        plan = EnginePlan(
            model_dir=model_dir,
            dtype=dtype,
            rollout=rollout,
            mode=resolve_mode(rollout, dtype, model_dir),
            max_model_len=max_model_len,
            lora_r=lora_r,
            stop_token_ids=tuple(stop_token_ids),
            base=base,
            field=field,
        )
        # Not in the placement group of a caller, such as a trial's: it, and so its engines, would be put there.
        placed = ray.remote(Coordinator).options(num_cpus=0, scheduling_strategy="DEFAULT")
        coordinator = placed.remote(ENGINES[engine], plan)
        pool = cls(cast("type[Coordinator]", coordinator))
        try:
            pool._answer(pool._coordinator.start.remote(placement_timeout_s))
        except BaseException:
            pool.close()
            raise
        return pool

    def sync(self, adapter: bytes, adapter_config: dict[str, Any], version: int) -> SyncReport:
        """Give every engine new weights: the content of a peft adapter's safetensors file and its config.

        Raises:
            RunError: an engine could not load them or acknowledges others.
        """
        self._answer(self._coordinator.hold.remote(0, adapter))
        return self._answer(
            self._coordinator.sync.remote(adapter_config, version, adapter_digest(adapter, adapter_config))
        )

    def replace(self, buckets: Iterable[bytes], version: int) -> SyncReport:
        """Give every engine new weights in buckets, each the content of a safetensors file; see `Engine.replace`.

        One bucket is taken after the other: neither this process nor an engine holds all of them at once.

        Raises:
            RunError: an engine could not load them or acknowledges others.
        """
        passing = Digested(buckets)
        for number, bucket in enumerate(passing):
            self._answer(self._coordinator.hold.remote(number, bucket))
        return self._answer(self._coordinator.sync.remote(REPLACED, version, passing.digest))

    def generate(self, requests: list[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        """One record for each request, in their order; an engine's death on the way loses and doubles none.

        Raises:
            UserError: a prompt leaves too little room for the answer.
            RunError: engines die again and again, or a call fails.
        """
        return self._answer(self._coordinator.generate.remote(requests, sampling))

    def logprobs(self, sequences: list[list[int]], prompt_lens: list[int]) -> list[Logprobs]:
        """[engine][sequence][response token]: teacher-forced log-probabilities at temperature 1, for `check_sync`."""
        return self._answer(self._coordinator.logprobs.remote(sequences, prompt_lens))

    def judged(self, sequences: list[list[int]], prompt_lens: list[int]) -> Logprobs:
        """[sequence][response token]: teacher-forced log-probabilities at temperature 1; engines share the sequences.

        Raises:
            RunError: engines die again and again, or a call fails.
        """
        return self._answer(self._coordinator.judged.remote(sequences, prompt_lens))

    def stats(self) -> dict[str, Any]:
        """Tokens, seconds, restarts, in all and by engine, since the start."""
        return self._answer(self._coordinator.stats.remote())

    def close(self) -> None:
        """End the engines and the coordinator; the handle is useless afterwards."""
        with contextlib.suppress(RayActorError):  # it may be gone already, and its engines with it
            self._answer(self._coordinator.close.remote())
        ray.kill(cast("ActorHandle[Coordinator]", self._coordinator))

    def _answer(self, reply: ObjectRef[T]) -> T:
        try:
            return ray.get(reply)
        except RayTaskError as error:
            if isinstance(error.cause, UserError | RunError):
                raise error.cause from None
            raise
