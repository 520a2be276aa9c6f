"""A gateway over a real registry, and an engine that says what it is told to."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from fastapi.testclient import TestClient
from ray.llm._internal.serve.core.configs.openai_api_models import ChatCompletionResponse

from triptych.models.base import fingerprint
from triptych.registry import Registry
from triptych.serve.capabilities import VLLM
from triptych.serve.gateway import Gateway

CHAT = {"messages": [{"role": "user", "content": "Is it good?"}]}
USAGE = {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}


def answer(model: str) -> ChatCompletionResponse:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"}
    return ChatCompletionResponse(model=model, choices=[choice], usage=USAGE)


class StandInEngine:
    """Stands where a deployment handle does: keeps the requests, gives the answers of `script`."""

    def __init__(self) -> None:
        self.requests: list[Any] = []
        self.script: Callable[[Any], list[Any]] = lambda body: [answer(body.model)]

    def options(self, *, stream: bool = True, method_name: str = "") -> "StandInEngine":
        assert stream
        self.method = method_name
        return self

    def remote(self, body: Any) -> AsyncIterator[Any]:
        assert self.method in ("chat", "completions")
        self.requests.append(body)

        async def items() -> AsyncIterator[Any]:
            for item in self.script(body):
                if isinstance(item, Exception):
                    raise item
                yield item

        return items()


def client_of(engine: Any, registry: Registry, base: Path, max_lora_rank: int = 8, **fields: Any) -> TestClient:
    config = {"model": {"base": str(base)}, "registry": registry.url, "engine": {"max_lora_rank": max_lora_rank}}
    gateway = Gateway({VLLM: engine}, config=config | fields, base_fingerprint=fingerprint(base))
    return TestClient(gateway.app(), raise_server_exceptions=False)


def error_of(response: Any, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["code"] == code
    return dict(body["error"])
