"""One request asks for a bounded amount, and goes no further than its client."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from starlette.responses import Response

from tests.support.gateway import CHAT, StandInEngine, answer, client_of, error_of
from triptych.registry import Registry
from triptych.serve.disconnect import cancelled_with_client

LIMITS = {"max_n": 4, "max_prompts": 3, "max_tokens": 100, "max_body_mb": 0.01}


@pytest.fixture
def engine() -> StandInEngine:
    return StandInEngine()


@pytest.fixture
def client(engine: StandInEngine, registry: Registry, tiny_model_dir: Path) -> TestClient:
    return client_of(engine, registry, tiny_model_dir, require_key=False, limits=LIMITS)


@pytest.mark.parametrize(
    ("route", "asked", "message"),
    [
        ("chat/completions", {**CHAT, "n": 16384}, "n: 16384 is more than the 4 allowed here."),
        ("completions", {"prompt": "a", "n": 5}, "n: 5 is more"),
        ("completions", {"prompt": "a", "n": 5, "use_beam_search": True}, "n: 5 is more"),
        ("completions", {"prompt": ["a"] * 4}, "prompts: 4 is more than the 3 allowed here."),
        ("completions", {"prompt": [[1, 2]] * 1000}, "prompts: 1000 is more"),
        ("completions", {"prompt": "a", "max_tokens": 101}, "max_tokens: 101 is more than the 100"),
        ("chat/completions", {**CHAT, "max_tokens": 10**9}, "max_tokens: 1000000000 is more"),
        ("chat/completions", {**CHAT, "max_completion_tokens": 101}, "max_completion_tokens: 101 is more"),
        ("chat/completions", {**CHAT, "max_completion_tokens": 101, "max_tokens": 1}, "max_completion_tokens: 101"),
    ],
)
def test_more_than_allowed_is_refused(
    client: TestClient, engine: StandInEngine, route: str, asked: dict[str, Any], message: str
) -> None:
    error = error_of(client.post(f"/v1/{route}", json={"model": "tiny", **asked}), 400, "over_limit")
    assert error["message"].startswith(message)
    assert error["param"] in ("prompt", *asked)
    assert engine.requests == []


@pytest.mark.parametrize(
    ("route", "asked", "tokens"),
    [
        ("chat/completions", {**CHAT, "n": 4}, ("max_tokens", 100)),
        ("chat/completions", {**CHAT, "max_tokens": 100}, ("max_tokens", 100)),
        ("chat/completions", {**CHAT, "max_completion_tokens": 7}, ("max_completion_tokens", 7)),
        ("completions", {"prompt": list(range(1, 90))}, ("max_tokens", 16)),
        ("completions", {"prompt": ["a", "b", "c"]}, ("max_tokens", 16)),
    ],
)
def test_what_is_allowed_passes_and_no_answer_is_unbounded(
    client: TestClient, engine: StandInEngine, route: str, asked: dict[str, Any], tokens: tuple[str, int]
) -> None:
    assert client.post(f"/v1/{route}", json={"model": "tiny", **asked}).status_code == 200
    assert dict(engine.requests[0])[tokens[0]] == tokens[1]


def test_a_body_that_is_too_large_is_not_read_to_its_end(client: TestClient, engine: StandInEngine) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 1000

    large = {"model": "tiny", "messages": [{"role": "user", "content": "x" * 10_000}]}
    error_of(client.post("/v1/chat/completions", json=large), 413, "request_too_large")
    error_of(
        client.post("/v1/chat/completions", content=b"{}", headers={"Content-Length": "9" * 30}),
        413,
        "request_too_large",
    )
    error_of(client.post("/v1/chat/completions", content=chunks()), 413, "request_too_large")
    assert engine.requests == []


@pytest.mark.slow
def test_a_path_with_a_slash_at_its_end_leads_nowhere(client: TestClient) -> None:
    """A redirect would go to the host that the request names, with the key and the prompt."""
    response = client.post(
        "/v1/chat/completions/",
        json={"model": "tiny", **CHAT},
        headers={"Host": "elsewhere.example"},
        follow_redirects=False,
    )
    error_of(response, 404, "invalid_request")
    assert "location" not in response.headers


async def test_an_answer_nobody_waits_for_is_cancelled() -> None:
    leave, cancelled = asyncio.Event(), asyncio.Event()

    async def receive() -> dict[str, Any]:
        await leave.wait()
        return {"type": "http.disconnect"}

    async def work() -> Response:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return Response()

    asked = asyncio.ensure_future(cancelled_with_client(receive, work()))
    await asyncio.sleep(0.01)
    leave.set()
    assert (await asked).status_code == 499
    await asyncio.wait_for(cancelled.wait(), 5)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_before_the_first_token_frees_the_engine(
    engine: StandInEngine, registry: Registry, tiny_model_dir: Path, stream: bool
) -> None:
    """Whatever its headers say."""
    freed = threading.Event()

    class Waiting:
        def cancel(self) -> None:
            freed.set()

        def __aiter__(self) -> "Waiting":
            return self

        async def __anext__(self) -> Any:
            await asyncio.sleep(60)
            return [answer("tiny")]

    engine.remote = lambda body: Waiting()  # type: ignore[method-assign]
    app = client_of(engine, registry, tiny_model_dir, require_key=False).app
    body = b'{"model": "tiny", "prompt": "a", "stream": %s}' % (b"true" if stream else b"false")
    messages: AsyncIterator[dict[str, Any]] = _then_leave(body)
    sent: list[Any] = []
    headers = [(b"x-request-disconnect-disabled", b"?1"), (b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    await asyncio.wait_for(app(scope, messages.__anext__, send), 20)
    assert sent[0]["status"] == 499
    assert freed.wait(5)


async def _then_leave(body: bytes) -> AsyncIterator[dict[str, Any]]:
    yield {"type": "http.request", "body": body, "more_body": False}
    await asyncio.sleep(0.1)
    while True:
        yield {"type": "http.disconnect"}
