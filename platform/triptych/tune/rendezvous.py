"""A rendezvous at each evaluation: the stage waits there until the trial's driver lets it continue.

A module of its own, so that the actor's process loads nothing that trains.
"""

import asyncio


class Rendezvous:
    """Actor between a stage's rank 0, which calls `evaluated`, and the trial's driver: `arrived`, then `resume`."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[int] = asyncio.Queue(1)
        self._resumed: asyncio.Queue[None] = asyncio.Queue(1)

    async def evaluated(self, step: int) -> None:
        """Report an evaluation; returns when the driver has called `resume`."""
        await self._arrived.put(step)
        await self._resumed.get()

    async def arrived(self) -> int:
        """Wait for the next evaluation; its step."""
        return await self._arrived.get()

    async def resume(self) -> None:
        """Let the stage that waits continue."""
        await self._resumed.put(None)
