"""Proxying of a client's request to an engine, and of the answer back."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol, TypeAlias, cast

from fastapi import Response
from ray.exceptions import ActorDiedError, ActorUnavailableError
from ray.llm._internal.serve.core.configs.openai_api_models import ErrorResponse
from ray.llm._internal.serve.core.ingress.utils import _sanitize_chat_completion_request
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.responses import JSONResponse, StreamingResponse
from vllm.entrypoints.generate.base.protocol import StreamOptions

from triptych.observe.metrics import GatewayMetrics
from triptych.serve import errors
from triptych.serve.errors import ApiError

logger = logging.getLogger("ray.serve")

_OURS = {"priority": 0, "session_id": None, "kv_transfer_params": None, "ec_transfer_params": None, "vllm_xargs": None}
"""Fields of vLLM's requests that steer the engine, not the answer: a client's values are dropped."""

EngineMethod = Literal["chat", "completions"]
"""Methods of an engine's replicas that generate text."""
Body: TypeAlias = ChatCompletionRequest | CompletionRequest

_DONE = "data: [DONE]\n\n"
_NO_TOKENS = {"prompt_tokens": 0, "completion_tokens": 0}


class Chunks(Protocol):
    """Answer stream of a deployment handle."""

    async def __anext__(self) -> Any: ...

    def cancel(self) -> None: ...


class EngineClient:
    """Sends requests to the replicas of one engine."""

    def __init__(self, replicas: DeploymentHandle[Any]) -> None:
        self._replicas = replicas.options(stream=True)

    def send(self, method: EngineMethod, body: Body) -> Chunks:
        """Call a method of one replica, which Ray chooses."""
        return cast(Chunks, self._replicas.options(method_name=method).remote(body))


class ProxiedRequest:
    """A client's request: sent to the engine under its name for the model, its answer measured."""

    def __init__(self, method: EngineMethod, body: Body, model: str, metrics: GatewayMetrics) -> None:
        self._method = method
        self._metrics = metrics
        self._model = model
        self._started = time.perf_counter()
        self._hides_usage = bool(body.stream) and not (body.stream_options and body.stream_options.include_usage)
        self._body = _for_engine(body, model)

    async def run(self, engine: EngineClient) -> Response:
        """The whole answer, or a stream of server-sent events; ApiError where there is none."""
        self._metrics.started(self._model)
        chunks = engine.send(self._method, self._body)
        try:
            first = await _next(chunks)
            if isinstance(first, ErrorResponse):
                raise _engine_error(first.error.code, first.error.type, first.error.message)
            if isinstance(first, str) and (error := _error_in(first)) is not None:
                raise error
        except asyncio.CancelledError:
            chunks.cancel()
            self._metrics.cancelled(self._model)
            raise
        except ApiError as error:
            self._metrics.failed(self._model, error.code)
            raise
        if isinstance(first, str):
            return StreamingResponse(
                self._events(first, chunks), media_type="text/event-stream", headers={"Cache-Control": "no-cache"}
            )
        answer = first.model_dump()
        self._finished(answer["usage"])
        return JSONResponse(answer)

    async def _events(self, first: str, chunks: Chunks) -> AsyncIterator[str]:
        """The engine's events, without the count of tokens where the client did not ask for it."""
        self._metrics.first_token(self._model, time.perf_counter() - self._started)
        event, usage, ended = first, _NO_TOKENS, False
        try:
            while event != _DONE:
                if (error := _error_in(event)) is not None:
                    raise error
                counted = _usage_in(event)
                usage = counted or usage
                if counted is None or not self._hides_usage:
                    yield event
                event = await _next(chunks)
            ended = True
            self._finished(usage)
        except ApiError as error:
            ended = True
            self._metrics.failed(self._model, error.code)
            yield f"data: {json.dumps(error.body())}\n\n"
        finally:
            if not ended:  # the client went away
                chunks.cancel()
                self._metrics.cancelled(self._model)
        yield _DONE

    def _finished(self, usage: dict[str, Any]) -> None:
        seconds = time.perf_counter() - self._started
        self._metrics.finished(self._model, seconds, usage["prompt_tokens"], usage["completion_tokens"])


def _for_engine(body: Body, model: str) -> Body:
    """The client's request under the engine's model name and an id of ours, its tokens always counted."""
    if isinstance(body, ChatCompletionRequest):
        body = _sanitize_chat_completion_request(body)
    ours: dict[str, Any] = {field: value for field, value in _OURS.items() if field in type(body).model_fields}
    ours |= {"model": model, "request_id": uuid.uuid4().hex}
    if body.stream:
        asked = body.stream_options or StreamOptions()
        ours["stream_options"] = asked.model_copy(update={"include_usage": True})
    return body.model_copy(update=ours)


async def _next(chunks: Chunks) -> Any:
    """The next answer, event or error of the engine; an engine that is full or gone becomes an ApiError."""
    try:
        batch = await chunks.__anext__()
    except BackPressureError as error:
        raise errors.overloaded() from error
    except (DeploymentUnavailableError, ActorDiedError, ActorUnavailableError) as error:
        raise errors.unavailable("engine") from error
    except Exception as error:
        logger.exception("the engine failed")
        raise errors.internal() from error
    return batch[0] if isinstance(batch, list) else batch


def _error_in(event: str) -> ApiError | None:
    if not event.startswith('data: {"error"'):
        return None
    error = json.loads(event.removeprefix("data: "))["error"]
    return _engine_error(error["code"], error["type"], error["message"])


def _engine_error(status: int, kind: str, message: str) -> ApiError:
    """Error for the client: faults of the request are passed on, internal ones are logged."""
    if 400 <= status < 500 or kind in errors.ENGINE_CODES:
        return ApiError(status, kind, message)
    logger.error("the engine answered %d %s: %s", status, kind, message)
    return errors.internal()


def _usage_in(event: str) -> dict[str, Any] | None:
    """Token counts, from a stream's last event but one; None for other events."""
    if '"choices":[]' not in event:
        return None
    return json.loads(event.removeprefix("data: "))["usage"]
