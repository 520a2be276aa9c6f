"""Calls that may raise, hang or be refused: a time limit, further attempts, so many at once."""

import asyncio
import inspect
import os
import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

from triptych.recipe.reward import Calls

T = TypeVar("T")


@dataclass(frozen=True)
class Failed:
    """Why there is no score."""

    reason: str


class RefusedError(Exception):
    """A call that would be refused again, however often it is made."""


class BusyError(Exception):
    """A call that can be made again after so many seconds; no wait is longer than the time limit of a call."""

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason)
        self.seconds = seconds


class Asking:
    """Makes calls under the terms of a recipe; to be used within one event loop."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._free = asyncio.Semaphore(calls.concurrency)

    async def __call__(
        self, call: Callable[[], Awaitable[T]], before: Callable[[], Awaitable[None]] | None = None
    ) -> T | Failed:
        """What the call gives within its time limit, at the first attempt that does not raise; else why not.

        `before`: awaited before each attempt, out of its time limit.
        """
        reason, wait, seconds = "", 0.0, self._calls.timeout_s
        for attempt in range(self._calls.retries + 1):
            if attempt:
                await asyncio.sleep(max(wait, self._backoff(attempt)))
            async with self._free:
                if before is not None:
                    await before()
                try:
                    async with asyncio.timeout(seconds) as limit:
                        return await call()
                except RefusedError as error:
                    return Failed(str(error))
                except Exception as error:  # noqa: BLE001 - whatever a reward raises is the reason
                    wait = min(error.seconds, seconds) if isinstance(error, BusyError) else 0.0
                    late = limit.expired()
                    reason = f"no answer within {seconds:g} s" if late else f"{type(error).__name__}: {error}"
        return Failed(reason)

    def _backoff(self, attempt: int) -> float:
        """Seconds before an attempt, counted from 1: each twice the last, and up to a quarter more by chance."""
        return self._calls.backoff_s * float(2 ** (attempt - 1)) * random.uniform(1.0, 1.25)


async def in_thread(function: Callable[[], Any]) -> Any:
    """What a function returns, which may be a coroutine function; it runs in a thread of its own.

    The thread is left alone when the caller gives up: Python has no way to end it, nor does it keep a process alive. A
    coroutine runs on the process's one event loop for such, on which clients and locks that outlive a call stay good,
    and is cancelled when the caller gives up.
    """
    result = await _threaded(function)
    if not inspect.isawaitable(result):
        return result
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_awaited(result), _lasting_loop()))


async def _threaded(function: Callable[[], Any]) -> Any:
    loop = asyncio.get_running_loop()
    found: asyncio.Future[tuple[Any, BaseException | None]] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if not found.done():
            found.set_result((result, error))

    def work() -> None:
        result, raised = None, None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - `sys.exit` in a reward is a fault of the reward
            raised = error
        with suppress(RuntimeError):  # the loop is closed: its caller gave up long ago
            loop.call_soon_threadsafe(tell, result, raised)

    threading.Thread(target=work, name="reward-work", daemon=True).start()
    result, error = await found
    if error is not None:
        raise error if isinstance(error, Exception) else _ended(error)
    return result


async def _awaited(result: Awaitable[T]) -> T:
    """The result; what would end the loop of all such calls is an error of this one."""
    try:
        return await result
    except Exception:
        raise
    except BaseException as error:
        task = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
            raise
        raise _ended(error) from None


def _ended(error: BaseException) -> RuntimeError:
    return RuntimeError(f"it ended by {type(error).__name__}: {error}")


_starting = threading.Lock()


def _lasting_loop() -> asyncio.AbstractEventLoop:
    """The event loop on which all coroutines of rewards and environments in this process run."""
    with _starting:
        return _loop_of(os.getpid())


@cache
def _loop_of(process: int) -> asyncio.AbstractEventLoop:
    """A fork has none of its parent's threads, and so needs a loop of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="async-calls", daemon=True).start()
    return loop
