"""Environments that tests name in recipes."""

import asyncio
import time
from typing import Any

from triptych.environments.base import Step


class Counting:
    """Replies with the number of the turn, and gives it as reward; the second turn of prompt `last` is the last."""

    def __init__(self, number: int = 0, last: int = -1, **fields: Any) -> None:
        self.turn, self.ends = 0, number == last

    async def step(self, text: str) -> Step:
        self.turn += 1
        return Step(None if self.ends and self.turn == 2 else f"turn {self.turn}", float(self.turn))


class Failing:
    """Raises on prompt `broken`, and hangs on prompt `hung`."""

    def __init__(self, number: int = 0, broken: int = -1, hung: int = -1, **fields: Any) -> None:
        self.number, self.broken, self.hung = number, broken, hung

    def step(self, text: str) -> Step:
        if self.number == self.broken:
            raise ValueError("no such door")
        if self.number == self.hung:
            time.sleep(60)
        return Step()


class Odd(Counting):
    """Gives no number as the reward of prompt `odd`."""

    def __init__(self, number: int = 0, odd: int = -1, **fields: Any) -> None:
        super().__init__(number)
        self.odd = number == odd

    async def step(self, text: str) -> Step:
        return Step("next", None) if self.odd else await super().step(text)  # type: ignore[arg-type]


class Empty(Counting):
    """Replies as `Counting` does, and is false, as a container without elements is."""

    def __len__(self) -> int:
        return 0


class Wordy:
    """Replies at length."""

    def __init__(self, **fields: Any) -> None:
        pass

    def step(self, text: str) -> Step:
        return Step("word " * 200)


class Feeding:
    """Replies with what a task of its own, begun in the first turn, has put into a queue."""

    def __init__(self, **fields: Any) -> None:
        self.queue: asyncio.Queue[str] | None = None

    async def step(self, text: str) -> Step:
        if self.queue is None:
            self.queue = asyncio.Queue(maxsize=1)
            self.task = asyncio.create_task(self._feed(self.queue))
        return Step(await self.queue.get(), 1.0)

    async def _feed(self, queue: asyncio.Queue[str]) -> None:
        for turn in range(1, 9):
            await asyncio.sleep(0.01)  # the loop is needed between the turns too
            await queue.put(f"turn {turn}")
