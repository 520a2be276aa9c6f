"""Requests to servers that score: JSON there and back, a token from the environment, refusals told from hindrances."""

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import httpx

from triptych import credentials
from triptych.errors import UserError
from triptych.recipe.reward import ServedReward
from triptych.rewards.asking import BusyError, RefusedError

AGAIN = (408, 409, 425, 429)
"""Statuses below 500 after which the same request may succeed."""
_SHOWN = 200


def headers_of(settings: ServedReward) -> dict[str, str]:
    """The header with the token. UserError: there is none, or it would be sent unencrypted over a network."""
    if settings.token_env is None:
        return {}
    if credentials.sends_in_clear(settings.url):
        raise UserError(f"url: {settings.url} would be sent a token unencrypted; allowed: https, or no token_env")
    token = credentials.read(settings.token_env, f"token_env: {settings.url} asks for a token")
    return {"Authorization": f"Bearer {token}"}


S = TypeVar("S", bound=ServedReward)


@dataclass(frozen=True)
class ServedScore(Generic[S]):
    """A reward that a server gives, with its token."""

    settings: S
    headers: Mapping[str, str]

    @classmethod
    def of(cls, settings: S) -> Self:
        """The reward, with its token. UserError: as `headers_of`."""
        return cls(settings, headers_of(settings))


class JsonClient:
    """Posts JSON to one server; an async context."""

    def __init__(self, settings: ServedReward, headers: Mapping[str, str], per_minute: float | None = None) -> None:
        """`per_minute`: requests that begin within a minute."""
        limits = httpx.Limits(max_connections=settings.calls.concurrency)
        self._http = httpx.AsyncClient(headers=dict(headers), timeout=None, limits=limits)  # noqa: S113 - `Asking` has it
        self._gap = 0.0 if per_minute is None else 60.0 / per_minute
        self._next = -math.inf

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def post(self, url: str, body: Mapping[str, Any]) -> Any:
        """The JSON that the server answers.

        Raises:
            RefusedError: it refuses, and would again.
            BusyError: it has no time now.
            ValueError: it answered no JSON.
        """
        answer = await self._http.post(url, json=body)
        if answer.is_success:
            return answer.json()
        said = f"{url} answered {answer.status_code}: {answer.text[:_SHOWN]}"
        if answer.status_code < 500 and answer.status_code not in AGAIN:
            raise RefusedError(said)
        wait = answer.headers.get("Retry-After", "")
        raise BusyError(said, float(wait) if wait.isdecimal() else 0.0)

    async def turn(self) -> None:
        """Wait until the next request may begin."""
        now = asyncio.get_running_loop().time()
        begin = max(now, self._next)
        self._next = begin + self._gap
        await asyncio.sleep(begin - now)


class ChatClient(JsonClient):
    """Asks a model behind an OpenAI-compatible endpoint."""

    async def complete(self, url: str, model: str, messages: Sequence[Mapping[str, str]], max_tokens: int) -> str:
        """The model's most probable answer to messages; `url`: the endpoint's, with or without `/v1`.

        Raises, beside what `post` raises: ValueError where there is no text.
        """
        asked = {"model": model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0.0}
        base = url.rstrip("/").removesuffix("/v1")
        answer = await self.post(f"{base}/v1/chat/completions", asked)
        try:
            text = answer["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            text = None
        if not isinstance(text, str):
            raise ValueError(f"{base} answered no text of a chat completion")
        return text
