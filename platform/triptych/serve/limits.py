"""Limits of one request: the amounts that it asks for, and the size of its body."""

from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from triptych.recipe.serve import RequestLimits
from triptych.serve.errors import ApiError, too_large, too_much
from triptych.serve.proxied_request import Body


def within(body: Body, limits: RequestLimits) -> Body:
    """The request, its answer bounded where it named no length; ApiError 400 where it asks for more than allowed."""
    asked = dict(body)  # reading the field max_tokens of a chat warns of its age
    length = "max_tokens" if asked.get("max_completion_tokens") is None else "max_completion_tokens"
    prompts = _prompts(asked.get("prompt")) + _prompts(asked.get("prompt_embeds"))
    if prompts > limits.max_prompts:
        raise too_much("prompt", prompts, limits.max_prompts)
    for field, most in (("n", limits.max_n), (length, limits.max_tokens)):
        if (asked[field] or 0) > most:
            raise too_much(field, asked[field], most)
    return body if asked[length] is not None else body.model_copy(update={length: limits.max_tokens})


def _prompts(prompt: object) -> int:
    """Number of prompts in a field that holds one (text, tokens, bytes) or a list of them."""
    if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
        return len(prompt)
    return 0 if prompt is None else 1


class BodyLimit:
    """ASGI middleware that answers 413 to a body of more than `most` bytes, without reading it to its end."""

    def __init__(self, app: ASGIApp, most: int, rejected: Callable[[ApiError], None]) -> None:
        self._app = app
        self._most = most
        self._rejected = rejected

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            messages = await self._read(Headers(scope=scope), receive)
        except ApiError as error:
            self._rejected(error)
            await error.response()(scope, receive, send)
            return

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    async def _read(self, headers: Headers, receive: Receive) -> list[Message]:
        """All messages of the body; ApiError 413 as soon as it is too large."""
        announced = headers.get("content-length", "0")
        size, messages = 0, list[Message]()
        if announced.isdigit() and int(announced) > self._most:
            raise too_large(self._most)
        while not messages or messages[-1].get("more_body", False):
            messages.append(await receive())
            size += len(messages[-1].get("body", b""))
            if size > self._most:
                raise too_large(self._most)
        return messages
