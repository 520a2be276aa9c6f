"""A counting semaphore for trials, as a Ray actor: of a population that is begun at once, only some train at a time."""

import asyncio
from typing import Any

import ray


class _Semaphore:
    """State of the actor; a trial that holds the semaphore acquires it again at no cost."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._holding: set[int] = set()
        self._changed = asyncio.Condition()

    async def acquire(self, trial: int) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: self._free > 0 or trial in self._holding)
            if trial not in self._holding:
                self._holding.add(trial)
                self._free -= 1

    async def release(self, trial: int) -> None:
        async with self._changed:
            if trial in self._holding:
                self._holding.remove(trial)
                self._free += 1
                self._changed.notify_all()


class TrialSemaphore:
    """Picklable handle of the actor; `count` trials may hold the semaphore."""

    def __init__(self, count: int) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(_Semaphore).remote(count)

    def acquire(self, trial: int) -> None:
        """Wait until the trial may train."""
        ray.get(self._actor.acquire.remote(trial))

    def release(self, trial: int) -> None:
        """Let another trial train; nothing if this one does not hold the semaphore."""
        ray.get(self._actor.release.remote(trial))

    def close(self) -> None:
        """End the actor, which handles that Tune keeps with its trials would hold alive."""
        ray.kill(self._actor)
