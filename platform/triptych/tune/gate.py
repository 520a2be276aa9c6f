"""Where a trial rests between two evaluations. A module of its own: its process then loads nothing that trains."""

import asyncio


class Gate:
    """An actor between a stage's rank 0, which waits at each evaluation, and the trial's driver."""

    def __init__(self) -> None:
        self._arrived: asyncio.Queue[int] = asyncio.Queue(1)
        self._open: asyncio.Queue[None] = asyncio.Queue(1)

    async def evaluated(self, step: int) -> None:
        await self._arrived.put(step)
        await self._open.get()

    async def arrived(self) -> int:
        return await self._arrived.get()

    async def open(self) -> None:
        await self._open.put(None)
