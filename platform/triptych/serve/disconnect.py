"""Requests that end when their client leaves."""

import asyncio
from collections.abc import Coroutine

from starlette.responses import Response
from starlette.types import Receive

CLIENT_CLOSED_REQUEST = 499


async def cancelled_with_client(receive: Receive, work: Coroutine[object, object, Response]) -> Response:
    """The response that `work` makes; where the client disconnects before, `work` is cancelled and the status is 499.

    Ray Serve cancels it too, but a client can forbid that with the header `x-request-disconnect-disabled`. The body
    must have been read: the next ASGI message is the disconnect.
    """
    answer = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        return await answer if answer.done() else Response(status_code=CLIENT_CLOSED_REQUEST)
    finally:
        left.cancel()
        answer.cancel()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
