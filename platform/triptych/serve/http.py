"""HTTP routes of the gateway: the key is checked before anything is read, and all errors have one form."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send
from vllm.exceptions import VLLMClientError

from triptych.serve import errors
from triptych.serve.caller import Caller, attach, caller_of
from triptych.serve.disconnect import cancelled_with_client
from triptych.serve.errors import ApiError
from triptych.serve.limits import BodyLimit

if TYPE_CHECKING:
    from triptych.serve.gateway import Gateway

logger = logging.getLogger("ray.serve")

HEALTH = "/healthz"
"""The only route that needs no key."""

_LONGEST = 300
"""Longest message about a client's own fields, in characters."""


Authenticate = Callable[[str, Mapping[str, str]], Awaitable[Caller]]
"""A function from the path and headers of a request to its caller; ApiError where it has none."""


def http_app(gateway: "Gateway", authenticate: Authenticate, admin: APIRouter) -> FastAPI:
    """The ASGI application of one gateway."""
    # A redirect would name the host that the client's own header names.
    app = FastAPI(title="Triptych", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(BodyLimit, most=gateway.max_body_bytes, rejected=gateway.rejected)  # runs after the next one
    app.add_middleware(_Authentication, authenticate=authenticate, rejected=gateway.rejected)

    async def answer(_: Request, error: Exception) -> Response:
        if isinstance(error, ApiError):
            return error.response()  # counted where it was raised
        told = _told(error)
        gateway.rejected(told)
        return told.response()

    for kind in (ApiError, HTTPException, RequestValidationError, VLLMClientError, Exception):
        app.add_exception_handler(kind, answer)

    @app.get(HEALTH)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": await gateway.cards()}

    @app.get("/v1/models/{model:path}")
    async def model(model: str) -> dict[str, Any]:
        return await gateway.card(model)

    @app.post("/v1/chat/completions")
    async def chat(request: Request, body: ChatCompletionRequest) -> Response:
        answer = gateway.generate(caller_of(request.scope), "chat", body)
        return await cancelled_with_client(request.receive, answer)

    @app.post("/v1/completions")
    async def completions(request: Request, body: CompletionRequest) -> Response:
        answer = gateway.generate(caller_of(request.scope), "completions", body)
        return await cancelled_with_client(request.receive, answer)

    app.include_router(admin)
    return app


class _Authentication:
    """Attaches the caller to the request, or answers 401 before a body is read or a route is looked up."""

    def __init__(self, app: ASGIApp, authenticate: Authenticate, rejected: Callable[[ApiError], None]) -> None:
        self._app = app
        self._authenticate = authenticate
        self._rejected = rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] != HEALTH:
            try:
                attach(scope, await self._caller(scope))
            except ApiError as error:
                self._rejected(error)
                await error.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller:
        try:
            return await self._authenticate(scope["path"], Headers(scope=scope))
        except ApiError:
            raise
        except Exception as error:
            logger.exception("the key could not be checked")
            raise errors.unavailable("registry") from error


def _told(error: Exception) -> ApiError:
    """The error for a client of a request that no route accepted."""
    if isinstance(error, HTTPException):
        text = {404: "There is no such route.", 405: "This route does not take that method."}
        return ApiError(error.status_code, "invalid_request", text.get(error.status_code, "Bad request."))
    if isinstance(error, RequestValidationError):
        fault = error.errors()[0]
        field = ".".join(str(step) for step in fault["loc"] if step != "body") or None
        # Never the input: it may be long or private.
        message = f"{field}: {fault['msg']}" if field else str(fault["msg"])
        return ApiError(400, "invalid_request", errors.shown(message, _LONGEST), param=field)
    if isinstance(error, VLLMClientError):
        message = errors.shown(str(error.args[0]), _LONGEST)  # str(error) repeats the value
        return ApiError(400, "invalid_request", message, param=getattr(error, "parameter", None))
    logger.error("unexpected error", exc_info=error)
    return errors.internal()
