"""The actor that owns a pool's engines: it schedules requests, syncs weights and replaces lost engines."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import ray
from ray import ObjectRef
from ray.exceptions import RayActorError, RayTaskError

from triptych.engines.base import (
    BASE_VERSION,
    Ack,
    Engine,
    EnginePlan,
    Logprobs,
    RolloutRecord,
    SampleRequest,
    SyncMode,
)
from triptych.errors import RunError, UserError
from triptych.recipe.rollout import Sampling
from triptych.rollout.engine_actor import EngineActor, EngineProcess
from triptych.rollout.leases import LARGEST_CHUNK, Leases, shares_of

PLACEMENT_TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 1800.0
"""Longest time to load a model: from slow storage it takes minutes. A death while loading is noticed at once."""
RESPAWNS_PER_CALL = 3
"""Engines that one call may lose: a request that kills every engine must end the run."""

T = TypeVar("T")
Call = Callable[[type[EngineActor]], ObjectRef[T]]
"""A call to an engine's actor: `lambda actor: actor.method.remote(...)`. The handle is typed as its actor's class."""


class EngineLostError(Exception):
    """An engine died or did not answer in time; its replacement is being started."""


@dataclass(frozen=True)
class SyncReport:
    """Result of one weight sync of the whole pool."""

    seconds: float
    digest: str
    """sha256 of the adapter's bytes and config, or of all buckets, the same on every engine."""
    mode: SyncMode


@dataclass(frozen=True)
class Weights:
    """Current weights of the pool, kept for engines that are started later."""

    parts: tuple[ObjectRef[bytes], ...]
    """An adapter, or buckets of weights, in Ray's object store, owned by the coordinator."""
    config: dict[str, Any]
    version: int
    digest: str


@dataclass
class EngineStats:
    """Counts of one slot's engines since the pool started, lost ones included."""

    index: int
    place: EngineProcess | None = None
    pinned: tuple[int, ...] = ()
    """Cores that the engine is pinned to; empty: not pinned."""
    version: int = BASE_VERSION
    restarts: int = 0
    requests: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Seconds of sampling."""


@dataclass
class Slot:
    """One engine's place in the pool; the actor in it may be replaced."""

    stats: EngineStats
    actor: Any = None
    """The handle of an EngineActor; called as a `Call`, which knows the types."""
    ready: "asyncio.Task[None] | None" = None
    """Done when the actor runs the current weights."""


@dataclass
class Respawns:
    """Engines lost during one call, with the limit on their number."""

    causes: list[str] = field(default_factory=list)

    def count(self, lost: EngineLostError) -> None:
        """Count a lost engine; RunError beyond `RESPAWNS_PER_CALL`."""
        self.causes.append(str(lost))
        if len(self.causes) > RESPAWNS_PER_CALL:
            raise RunError(f"{len(self.causes)} rollout engines were lost in one call: {'; '.join(self.causes)}")


def choose_cores(place: EngineProcess, threads: int, taken: Iterable[int]) -> tuple[int, ...]:
    """Distinct cores for an engine among those of its node; none (not pinned) where they do not suffice."""
    busy = set(taken)
    free = [core for core in place.cores if core not in busy]
    return tuple(free[:threads]) if len(free) >= threads else ()


class Coordinator:
    """Async actor over a pool's engines. `sync`, `generate` and `logprobs` take turns; `stats` answers meanwhile."""

    def __init__(self, kind: type[Engine], plan: EnginePlan) -> None:
        self._kind, self._plan = kind, plan
        self._slots = [Slot(EngineStats(index)) for index in range(plan.rollout.engines)]
        self._weights: Weights | None = None
        self._held: list[ObjectRef[bytes]] = []
        self._turn = asyncio.Lock()
        self._tokens = 0
        self._seconds = 0.0
        self._sync_seconds: list[float] = []

    @ray.method
    async def start(self, placement_timeout_s: float) -> None:
        """Start all engines; RunError if one does not start, or finds no place within `placement_timeout_s`."""
        for slot in self._slots:
            slot.ready = asyncio.create_task(self._bring_up(slot, placement_timeout_s))
        await asyncio.gather(*(slot.ready for slot in self._slots if slot.ready))

    @ray.method
    async def hold(self, number: int, part: bytes) -> None:
        """Keep part `number`, counted from 0, of the weights of the next `sync`.

        With the first one those of before are forgotten, which may take as much memory: an engine that is started
        meanwhile runs the base model, until that sync.
        """
        if number == 0:
            self._weights, self._held = None, []
        self._held.append(ray.put(part))

    @ray.method
    async def sync(self, config: dict[str, Any], version: int, digest: str) -> SyncReport:
        """Give every engine the weights that are held, which must have this digest; see `RolloutPool.sync`."""
        async with self._turn:
            start = time.monotonic()
            self._weights, self._held = Weights(tuple(self._held), config, version, digest), []
            await self._all(self._send_weights)
            self._sync_seconds.append(time.monotonic() - start)
            return SyncReport(self._sync_seconds[-1], digest, self._plan.mode)

    @ray.method
    async def logprobs(self, sequences: list[list[int]], prompt_lens: list[int]) -> list[Logprobs]:
        """Log-probabilities by each engine; see `RolloutPool.logprobs`."""
        async with self._turn:
            return await self._all(lambda slot: self._judge(slot, sequences, prompt_lens))

    @ray.method
    async def judged(self, sequences: list[list[int]], prompt_lens: list[int]) -> Logprobs:
        """Log-probabilities by the pool, of which each engine takes a share; see `RolloutPool.judged`."""
        shares = shares_of([len(sequence) for sequence in sequences], len(self._slots))
        found: Logprobs = [[] for _ in sequences]

        async def ask(slot: Slot) -> None:
            share = shares[slot.stats.index]
            for places in (share[at : at + LARGEST_CHUNK] for at in range(0, len(share), LARGEST_CHUNK)):
                answer = await self._judge(slot, [sequences[at] for at in places], [prompt_lens[at] for at in places])
                for place, row in zip(places, answer, strict=True):
                    found[place] = row

        async with self._turn:
            await self._all(ask)
        return found

    @ray.method
    async def generate(self, requests: list[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        """Sample an answer to each request; see `RolloutPool.generate`."""
        self._refuse_too_long(requests, sampling)
        async with self._turn:
            start = time.monotonic()
            leases = Leases(requests, len(self._slots))
            await self._serve(leases, sampling)
            records = leases.records()
            self._seconds += time.monotonic() - start
            self._tokens += sum(len(record.response_ids) for record in records)
            return records

    @ray.method
    async def stats(self) -> dict[str, Any]:
        """Counts since the start, of the pool and of each engine."""
        return {
            "mode": self._plan.mode,
            "tokens": self._tokens,
            "seconds": self._seconds,
            "tokens_per_second": self._tokens / self._seconds if self._seconds else 0.0,
            "sync_seconds": list(self._sync_seconds),
            "restarts": sum(slot.stats.restarts for slot in self._slots),
            "engines": [asdict(slot.stats) for slot in self._slots],
        }

    @ray.method
    async def close(self) -> None:
        """End the engines."""
        for slot in self._slots:
            if slot.ready:
                slot.ready.cancel()
            if slot.actor is not None:
                ray.kill(slot.actor)

    # One call over all engines

    async def _serve(self, leases: Leases, sampling: Sampling) -> None:
        """Give idle engines the next chunk until every lease is answered."""
        respawns = Respawns()
        # A slot that is being replaced counts as busy with nothing.
        busy: dict[asyncio.Task[Any], tuple[Slot, list[SampleRequest]]] = {_ready(s): (s, []) for s in self._slots}
        idle: list[Slot] = []
        try:
            while not leases.done:
                finished, _ = await asyncio.wait(busy, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    slot, chunk = busy.pop(task)
                    try:
                        leases.answer(chunk, task.result() or [])
                        idle.append(slot)
                    except EngineLostError as lost:
                        leases.give_back(chunk)
                        respawns.count(lost)
                        busy[_ready(slot)] = (slot, [])
                while idle and (next_chunk := leases.take()):
                    slot = idle.pop(0)
                    busy[asyncio.create_task(self._sample(slot, next_chunk, sampling))] = (slot, next_chunk)
        finally:
            for task, (_, chunk) in busy.items():
                if chunk:
                    task.cancel()

    async def _all(self, ask: Callable[[Slot], Awaitable[T]]) -> list[T]:
        """Answers of all engines to one call; a lost engine's replacement answers in its place."""
        respawns = Respawns()

        async def persist(slot: Slot) -> T:
            while True:
                try:
                    await asyncio.shield(_ready(slot))
                    return await ask(slot)
                except EngineLostError as lost:
                    respawns.count(lost)

        return list(await asyncio.gather(*map(persist, self._slots)))

    # One call to one engine

    async def _sample(self, slot: Slot, chunk: list[SampleRequest], sampling: Sampling) -> list[RolloutRecord]:
        start = time.monotonic()
        records = await self._ask(slot, "generate", lambda actor: actor.generate.remote(chunk, sampling))
        current = self._weights.version if self._weights else BASE_VERSION
        if any(version != current for record in records for version in record.versions):
            raise RunError(f"{_name(slot)} sampled with other weights than version {current}")
        slot.stats.seconds += time.monotonic() - start
        slot.stats.requests += len(records)
        slot.stats.tokens += sum(len(record.response_ids) for record in records)
        return records

    async def _judge(self, slot: Slot, sequences: list[list[int]], prompt_lens: list[int]) -> Logprobs:
        return await self._ask(slot, "logprobs", lambda actor: actor.logprobs.remote(sequences, prompt_lens))

    async def _send_weights(self, slot: Slot) -> None:
        weights = self._weights
        if weights is None:
            return
        ack = await self._ask(
            slot, "sync", lambda actor: actor.sync.remote(weights.parts, weights.config, weights.version)
        )
        if ack != Ack(weights.version, weights.digest):
            raise RunError(
                f"{_name(slot)} loaded version {ack.version} ({ack.digest[:12]}) "
                f"where version {weights.version} ({weights.digest[:12]}) was sent"
            )
        slot.stats.version = ack.version

    async def _ask(self, slot: Slot, method: str, call: Call[T]) -> T:
        """Call an engine and await its answer.

        Raises:
            EngineLostError: it died or answered nothing for rollout.timeout_s; a new one is being started.
            RunError: the call itself failed.
        """
        try:
            return await _answer(slot, method, call, self._plan.rollout.timeout_s)
        except RayActorError:
            cause = f"{_name(slot)} died"
        except TimeoutError:
            cause = f"{_name(slot)} gave no answer to {method} for {self._plan.rollout.timeout_s:.0f} s"
        ray.kill(slot.actor)
        slot.stats.restarts += 1
        slot.ready = asyncio.create_task(self._bring_up(slot, PLACEMENT_TIMEOUT_S))
        raise EngineLostError(cause)

    # Starting an engine

    async def _bring_up(self, slot: Slot, placement_timeout_s: float) -> None:
        """Place an engine, load it, give it the current weights."""
        rollout, stats = self._plan.rollout, slot.stats
        stats.place, stats.pinned, stats.version = None, (), BASE_VERSION
        environment = {"env_vars": self._kind.environment(self._plan)}
        slot.actor = (
            ray.remote(EngineActor)
            .options(num_cpus=rollout.cpus, num_gpus=rollout.gpus, runtime_env=environment)
            .remote(stats.index, self._kind, self._plan)
        )
        try:
            place = await _answer(slot, "place", lambda actor: actor.place.remote(), placement_timeout_s)
            if not rollout.gpus:
                stats.pinned = choose_cores(place, rollout.threads, self._pinned_on(place.node_id))
            stats.place = place
            await _answer(slot, "load", lambda actor: actor.load.remote(stats.pinned), LOAD_TIMEOUT_S)
            if self._weights is not None:
                await self._send_weights(slot)
        except TimeoutError:
            raise RunError(self._why_not_up(slot, placement_timeout_s)) from None
        except RayActorError as error:
            raise RunError(f"{_name(slot)} died while it started: {error}") from None

    def _pinned_on(self, node_id: str) -> list[int]:
        stats = [slot.stats for slot in self._slots]
        return [core for s in stats if s.place and s.place.node_id == node_id for core in s.pinned]

    def _why_not_up(self, slot: Slot, placement_timeout_s: float) -> str:
        if slot.stats.place is not None:
            return f"{_name(slot)} was placed but did not start within {LOAD_TIMEOUT_S:.0f} s"
        rollout, waiting = self._plan.rollout, sum(slot.stats.place is None for slot in self._slots)
        total, free = ray.cluster_resources(), ray.available_resources()
        wanted = {"CPU": rollout.cpus} | ({"GPU": rollout.gpus} if rollout.gpus else {})
        cluster = " and ".join(f"{total.get(key, 0):g} {key} ({free.get(key, 0):g} free)" for key in wanted)
        field = self._plan.field
        each = " and ".join(f"{amount:g} {key}" for key, amount in wanted.items())
        return (
            f"{waiting} of {len(self._slots)} rollout engines found no place within {placement_timeout_s:.0f} s: "
            f"each needs {each}, the cluster has {cluster}; lower {field}.engines, {field}.cpus or {field}.gpus, "
            "or free what other jobs hold"
        )

    def _refuse_too_long(self, requests: list[SampleRequest], sampling: Sampling) -> None:
        longest = max((len(request.prompt_ids) for request in requests), default=0)
        if longest + sampling.max_new_tokens > self._plan.max_model_len:
            raise UserError(
                f"rollout.sampling.max_new_tokens: {sampling.max_new_tokens} after a prompt of {longest} tokens is "
                f"more than the engines' {self._plan.max_model_len}"
            )


def _name(slot: Slot) -> str:
    return f"rollout engine {slot.stats.index}"


def _ready(slot: Slot) -> "asyncio.Task[None]":
    if slot.ready is None:
        raise RunError("the rollout pool was not started")
    return slot.ready


async def _answer(slot: Slot, method: str, call: Call[T], timeout_s: float) -> T:
    """An engine's answer; an error raised there becomes a RunError that names the engine."""
    if slot.actor is None:
        raise RunError("the rollout pool was not started")
    try:
        return await asyncio.wait_for(call(slot.actor), timeout_s)
    except RayTaskError as error:
        raise RunError(f"{_name(slot)} failed in {method}: {error.cause}") from None
