"""Which adapters an engine holds."""

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

_PARALLEL_FETCHES = 16


class Resident:
    """Has adapter versions loaded, each once: `fetch(ref)` in a thread, then `load(ref, folder)` on the event loop.

    Concurrent first requests share one load; a load that hangs holds up nobody but those who wait for that adapter, and
    them no longer than `timeout_s`; one that failed is tried again by the next request.
    """

    def __init__(
        self, fetch: Callable[[str], str], load: Callable[[str, str], Awaitable[None]], timeout_s: float
    ) -> None:
        self._fetch = fetch
        self._load = load
        self._timeout_s = timeout_s
        self._loads: dict[str, asyncio.Task[None]] = {}
        self._pool = ThreadPoolExecutor(_PARALLEL_FETCHES, thread_name_prefix="adapter")

    async def ensure(self, ref: str) -> None:
        """Return once the adapter is loaded; TimeoutError, or what `fetch` or `load` raised."""
        task = self._loads.get(ref)
        if task is None:
            task = self._loads[ref] = asyncio.create_task(self._bring(ref))
            task.add_done_callback(lambda done: self._forget_failure(ref, done))
        async with asyncio.timeout(self._timeout_s):
            # A request that gives up must not end the load that others wait for.
            await asyncio.shield(task)

    async def _bring(self, ref: str) -> None:
        folder = await asyncio.get_running_loop().run_in_executor(self._pool, self._fetch, ref)
        await self._load(ref, folder)

    def _forget_failure(self, ref: str, done: "asyncio.Task[None]") -> None:
        if done.cancelled() or done.exception() is not None:
            del self._loads[ref]
