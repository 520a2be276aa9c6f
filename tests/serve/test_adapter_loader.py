"""Adapters are loaded once, and one that hangs or fails is alone in it."""

import asyncio
import threading

import pytest

from triptych.serve.adapter_cache import AdapterLoader


class Loads:
    def __init__(self) -> None:
        self.fetched: list[str] = []
        self.loaded: list[tuple[str, str]] = []
        self.gate = threading.Event()
        self.broken: set[str] = set()

    def fetch(self, ref: str) -> str:
        self.fetched.append(ref)
        if ref == "slow@1":
            self.gate.wait(10)
        if ref in self.broken:
            raise OSError("no such artifact")
        return f"/cache/{ref}"

    async def load(self, ref: str, folder: str) -> None:
        await asyncio.sleep(0)
        self.loaded.append((ref, folder))


async def test_concurrent_first_requests_load_once() -> None:
    loads = Loads()
    loader = AdapterLoader(loads.fetch, loads.load, timeout_s=5)
    await asyncio.gather(*(loader.ensure("a@1") for _ in range(50)))
    await loader.ensure("a@1")
    assert loads.fetched == ["a@1"]
    assert loads.loaded == [("a@1", "/cache/a@1")]


async def test_a_load_that_hangs_holds_up_only_its_own_requests() -> None:
    loads = Loads()
    loader = AdapterLoader(loads.fetch, loads.load, timeout_s=0.2)
    slow = asyncio.create_task(loader.ensure("slow@1"))
    await asyncio.wait_for(loader.ensure("a@1"), timeout=0.15)
    with pytest.raises(TimeoutError):
        await slow
    loads.gate.set()
    await loader.ensure("slow@1")
    assert loads.fetched.count("slow@1") == 1


async def test_a_failed_load_is_tried_again() -> None:
    loads = Loads()
    loads.broken.add("a@1")
    loader = AdapterLoader(loads.fetch, loads.load, timeout_s=5)
    results = await asyncio.gather(*(loader.ensure("a@1") for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [OSError] * 3
    assert loads.fetched == ["a@1"]
    loads.broken.clear()
    await loader.ensure("a@1")
    assert loads.loaded == [("a@1", "/cache/a@1")]


async def test_a_request_that_gives_up_does_not_end_the_load() -> None:
    loads = Loads()
    loader = AdapterLoader(loads.fetch, loads.load, timeout_s=5)
    first = asyncio.create_task(loader.ensure("slow@1"))
    second = asyncio.create_task(loader.ensure("slow@1"))
    await asyncio.sleep(0.02)
    first.cancel()
    loads.gate.set()
    await second
    assert loads.loaded == [("slow@1", "/cache/slow@1")]
