"""Answers that are remembered for a moment."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from triptych.serve.ttl_cache import TtlCache


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as executor:
        yield executor


async def test_an_answer_is_reused_until_it_is_old(pool: ThreadPoolExecutor) -> None:
    asked: list[str] = []

    def ask(key: str) -> int:
        asked.append(key)
        return len(asked)

    cache = TtlCache(ask, pool, seconds=0.1)
    assert await cache.get("a") == 1
    assert await cache.get("a") == 1
    await asyncio.sleep(0.11)
    assert await cache.get("a") == 2
    assert asked == ["a", "a"]


async def test_many_at_once_ask_once(pool: ThreadPoolExecutor) -> None:
    asked: list[str] = []
    cache: TtlCache[str, None] = TtlCache(asked.append, pool, seconds=10)
    await asyncio.gather(*(cache.get("a") for _ in range(50)))
    assert asked == ["a"]


async def test_one_key_that_hangs_does_not_hold_up_another(pool: ThreadPoolExecutor) -> None:
    gate = threading.Event()
    cache: TtlCache[str, bool] = TtlCache(lambda key: key == "fast" or gate.wait(10), pool, seconds=10)
    slow = asyncio.create_task(cache.get("slow"))
    try:
        assert await asyncio.wait_for(cache.get("fast"), timeout=1)
        assert not slow.done()
    finally:
        gate.set()
        await slow


async def test_an_error_is_raised_and_not_remembered(pool: ThreadPoolExecutor) -> None:
    answers: Iterator[str | Exception] = iter([ValueError("down"), "up"])

    def ask(_: str) -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cache = TtlCache(ask, pool, seconds=10)
    with pytest.raises(ValueError, match="down"):
        await cache.get("a")
    assert await cache.get("a") == "up"


async def test_a_caller_that_gives_up_leaves_the_answer_to_the_others(pool: ThreadPoolExecutor) -> None:
    gate = threading.Event()

    def ask(_: str) -> str:
        gate.wait(10)
        return "answer"

    cache = TtlCache(ask, pool, seconds=10)
    first, second = asyncio.create_task(cache.get("a")), asyncio.create_task(cache.get("a"))
    await asyncio.sleep(0.01)
    first.cancel()
    gate.set()
    assert await second == "answer"


async def test_memory_is_bounded(pool: ThreadPoolExecutor) -> None:
    cache: TtlCache[int, int] = TtlCache(lambda key: key, pool, seconds=10, most=3)
    for key in range(10):
        await cache.get(key)
    assert len(cache._answers) == 3
