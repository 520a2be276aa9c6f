"""Adapters of an engine replica: a verified copy of each in the node's cache, loaded into the engine once."""

import asyncio
import logging
import shutil
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from triptych import storage
from triptych.cache import cache_dir
from triptych.errors import RunError
from triptych.registry import AdapterVersion

logger = logging.getLogger("ray.serve")

_PARALLEL_FETCHES = 16


def fetch_adapter(version: AdapterVersion) -> Path:
    """A verified copy of the adapter in this node's cache, under its digest.

    vLLM reads an adapter again whenever it left the engine's memory, in the middle of its step loop: so what it reads
    is a copy that nobody else removes. RunError when the artifact is not what was registered.
    """
    cache = cache_dir("served")
    target = cache / version.sha256
    if storage.exists(str(target)):
        try:
            storage.verify(str(target))
        except RunError as error:
            logger.warning("the cached copy of %s is damaged, and is fetched anew: %s", version.ref, error)
            storage.remove(str(target))
        else:
            return target
    if storage.verify(version.url).digest != version.sha256:
        raise RunError(f"{version.ref}: {version.url} is not what was registered (its digest differs)")
    source = storage.local_copy(version.url, cache)
    if source != target:
        with suppress(storage.AlreadyCommittedError), storage.committed(str(target)) as staging:
            shutil.copytree(source, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(storage.MANIFEST))
    if storage.verify(str(target)).digest != version.sha256:
        storage.remove(str(target))
        raise RunError(f"{version.ref}: {version.url} changed while it was copied")
    return target


class AdapterLoader:
    """Loads each adapter version once, however many requests wait for it.

    `fetch(ref)` runs in a thread and returns a folder, then `load(ref, folder)` runs on the event loop.

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
