"""Turns: where a whole population is begun at once, so many of its trials train at a time."""

import asyncio
from typing import Any

import ray


class _Slots:
    """The actor's state."""

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


class Slots:
    """Picklable handle."""

    def __init__(self, count: int) -> None:
        self._actor: Any = ray.remote(num_cpus=0)(_Slots).remote(count)

    def acquire(self, trial: int) -> None:
        """Wait for a turn."""
        ray.get(self._actor.acquire.remote(trial))

    def release(self, trial: int) -> None:
        """Its turn is over, if it had one."""
        ray.get(self._actor.release.remote(trial))

    def close(self) -> None:
        """No more turns. What Tune keeps of its trials would hold the actor."""
        ray.kill(self._actor)
