"""Reward functions that recipes of tests name."""

import asyncio
import math
import threading
from typing import Any

calls: list[dict[str, Any]] = []
"""What `remembering` was called with, in order."""


def remembering(**given: Any) -> list[float]:
    """The length of each completion; the call is kept in `calls`."""
    calls.append(given)
    return [float(len(text)) for text in given["completions"]]


def overlap(prompts: list[str], completions: list[str], answer: list[str], **others: Any) -> list[float]:
    """As TRL's documentation has them: a column by its name, the rest by `**`."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def few(completions: list[str]) -> list[float]:
    """A function that names what it reads."""
    return [1.0] * len(completions)


async def later(completions: list[str], **others: Any) -> list[float]:
    """A coroutine function."""
    await asyncio.sleep(0)
    return [0.5] * len(completions)


def spoken(prompts: list[list[dict[str, str]]], completions: list[list[dict[str, str]]], **others: Any) -> list[float]:
    """A function of conversational data."""
    return [
        float(f"{a[0]['content']}{b[0]['content']}" == "6 * 7?42") for a, b in zip(prompts, completions, strict=True)
    ]


def some_raise(completions: list[str], **others: Any) -> list[float]:
    """Raises where a completion is `bad`."""
    if "bad" in completions:
        raise KeyError("no such thing")
    return [1.0] * len(completions)


released = threading.Event()
"""Ends what `some_hang` waits for."""


def some_hang(completions: list[str], **others: Any) -> list[float]:
    """Waits for `released` where a completion is `bad`."""
    if "bad" in completions:
        released.wait(60.0)
    return [1.0] * len(completions)


def some_are_none(completions: list[str], **others: Any) -> list[Any]:
    """No numbers of many kinds, by the completion."""
    given = {"nan": math.nan, "inf": math.inf, "none": None, "text": "1.0", "true": True}
    return [given.get(text, 2) for text in completions]


def leaves(completions: list[str], **others: Any) -> list[float]:
    """Ends its process, as it thinks."""
    raise SystemExit(3)


def too_few(completions: list[str], **others: Any) -> list[float]:
    """One score too few."""
    return [1.0] * (len(completions) - 1)


attempts: list[int] = []
"""An entry for each call of `third_time`."""


def third_time(completions: list[str], **others: Any) -> list[float]:
    """Raises twice, then answers."""
    attempts.append(1)
    if len(attempts) < 3:
        raise ConnectionError("busy")
    return [1.0] * len(completions)


def by_number(completions: list[str], number: list[int], **others: Any) -> list[float]:
    """The column `number`; raises where it is 1."""
    if number == [1]:
        raise ValueError("no judgement of number one")
    return [float(one) for one in number]


def bad(**given: Any) -> list[float]:
    """Raises always."""
    raise ValueError("out of order")


class Client:
    """A client as libraries have them: a task reads for it, on the event loop where it was opened."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[asyncio.Future[float]] = asyncio.Queue()
        self.task = asyncio.create_task(self._serve())

    async def ask(self) -> float:
        found = asyncio.get_running_loop().create_future()
        await self.asked.put(found)
        return await found

    async def _serve(self) -> None:
        while True:
            (await self.asked.get()).set_result(0.25)


CLIENTS: list[Client] = []


async def by_client(completions: list[str]) -> list[float]:
    """A coroutine function that opens its client once, and keeps it from call to call."""
    if not CLIENTS:
        CLIENTS.append(Client())
    return [await CLIENTS[0].ask() for _ in completions]


CANCELLED = threading.Event()


async def never(completions: list[str]) -> list[float]:
    """A coroutine that waits for ever, and says when it is cancelled."""
    try:
        return await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        CANCELLED.set()
        raise


async def leaving(completions: list[str]) -> list[float]:
    """A coroutine that ends the process, as it thinks."""
    raise SystemExit(3)


async def giving_up(completions: list[str]) -> list[float]:
    """A coroutine that was cancelled by itself."""
    raise asyncio.CancelledError
