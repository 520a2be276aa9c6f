"""An async TTL cache with one request in flight per key."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Executor
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

SEEN_AFTER_S = 0.5
"""Seconds for which an answer of the registry is reused: a revoked key or moved alias acts within about this time."""


class TtlCache(Generic[K, V]):
    """An async TTL cache in front of a blocking `ask(key)`, with one request in flight per key.

    An answer's age counts from the moment the question was put, so a change at the source is seen after `seconds` and
    one call. Errors are not remembered. At most `most` answers are kept.
    """

    def __init__(self, ask: Callable[[K], V], pool: Executor, seconds: float, most: int = 4096) -> None:
        self._ask = ask
        self._pool = pool
        self._seconds = seconds
        self._most = most
        self._answers: OrderedDict[K, tuple[float, asyncio.Future[V]]] = OrderedDict()

    async def get(self, key: K) -> V:
        """The answer for `key`, no older than `seconds`; raises what `ask` raises."""
        now = time.monotonic()
        asked, answer = self._answers.get(key, (-self._seconds, None))
        if answer is None or now - asked >= self._seconds:
            answer = asyncio.get_running_loop().run_in_executor(self._pool, self._ask, key)
            self._answers[key] = (now, answer)
            self._answers.move_to_end(key)
            answer.add_done_callback(lambda done: self._drop_failed(key, done))
            while len(self._answers) > self._most:
                self._answers.popitem(last=False)
        # One caller that gives up must not take the answer from the others.
        return await asyncio.shield(answer)

    def _drop_failed(self, key: K, done: "asyncio.Future[V]") -> None:
        if done.cancelled() or done.exception() is not None:
            kept = self._answers.get(key)
            if kept is not None and kept[1] is done:
                del self._answers[key]
