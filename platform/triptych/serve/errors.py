"""Errors as OpenAI's clients expect them: a status, and `{"error": {message, type, param, code}}`."""

from typing import Any

from starlette.responses import JSONResponse

ADAPTER_FAILED = "adapter_load_failed"
ADAPTER_SLOW = "adapter_load_timeout"
ADAPTER_UNFIT = "adapter_not_servable"
ENGINE_CODES = {ADAPTER_FAILED, ADAPTER_SLOW, ADAPTER_UNFIT}
"""Error codes of our own replicas, whose messages are fit for a client."""


class ApiError(Exception):
    """An error for a client. The message never holds a path or another component's own words."""

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, retry_after: int | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after

    def body(self) -> dict[str, Any]:
        """Body of the error as JSON."""
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """Complete HTTP response for the error."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def shown(text: str, most: int = 80) -> str:
    """A client's text, cut to `most` characters and without control characters, fit for a message."""
    plain = "".join(c if c.isprintable() else "?" for c in text[: most + 1])
    return plain if len(plain) <= most else plain[:most] + "..."


def invalid_key(missing: bool) -> ApiError:
    """Error 401 for a missing key, or one that the registry does not know."""
    if missing:
        return ApiError(401, "invalid_api_key", "No API key was given: send `Authorization: Bearer KEY`.")
    return ApiError(401, "invalid_api_key", "The API key is wrong, or it was revoked.")


def not_admin() -> ApiError:
    """Error 403 for a key that is no admin's."""
    return ApiError(403, "not_an_admin_key", "This needs an admin key (`triptych keys create --admin`).")


def unknown_model(name: str, reason: str | None = None) -> ApiError:
    """Error 404 for an unknown model, or one that is not served here."""
    text = f"The model `{shown(name)}` does not exist."
    if reason is not None:
        text = f"The model `{shown(name)}` is not served here: {reason}."
    return ApiError(404, "model_not_found", text, param="model")


def too_much(field: str, asked: int, most: int) -> ApiError:
    """Error 400 for an amount beyond the endpoint's limits."""
    what = "prompts" if field == "prompt" else field
    return ApiError(400, "over_limit", f"{what}: {asked} is more than the {most} allowed here.", param=field)


def too_large(most: int) -> ApiError:
    """Error 413 for a body of more than `most` bytes."""
    return ApiError(413, "request_too_large", f"The request's body is larger than the {most} bytes allowed here.")


def overloaded() -> ApiError:
    """Error 503 where all replicas and their queue are full."""
    return ApiError(503, "overloaded", "All engines are busy and the queue is full.", retry_after=1)


def unavailable(what: str) -> ApiError:
    """Error 503 where a component does not answer."""
    return ApiError(503, "unavailable", f"The {what} does not answer.", retry_after=5)


def internal() -> ApiError:
    """Error 500 for anything else; details are in the log."""
    return ApiError(500, "internal_error", "The request failed on the server.")
