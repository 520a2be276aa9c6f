"""A client of an OpenAI-compatible endpoint, Triptych's or a plain vLLM's, for what verification asks."""

import difflib
import os
from collections.abc import Sequence
from typing import Any, NoReturn

import httpx

from triptych import credentials
from triptych.errors import UserError
from triptych.models.adapter_effect import UnusableError
from triptych.registry.remote import KEY
from triptych.serve.adapter_effect import answered_logprobs, completion_fields

_TIMEOUT_S = 300.0
"""An adapter may have to be fetched and loaded first, and a CPU's queue may be long."""


class EndpointClient:
    """Asks the endpoint at a URL; its key, where it needs one, is in TRIPTYCH_KEY or the file of TRIPTYCH_KEY_PATH.

    Raises, in all its methods: UserError where the endpoint cannot be reached, refuses, or answers something else.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        given = os.environ.get(KEY) or os.environ.get(f"{KEY}_PATH")
        headers = {"Authorization": f"Bearer {credentials.read(KEY, f'{self.url} asks for a key')}"} if given else {}
        self.sends_key = bool(headers)
        try:
            self._http = httpx.Client(base_url=f"{self.url}/v1", headers=headers, timeout=_TIMEOUT_S)
        except httpx.InvalidURL as error:
            raise UserError(f"endpoint {url}: no URL of an endpoint ({error})") from None

    def base_of(self, model: str) -> str | None:
        """The base model beside an adapter; None where the endpoint lists the name as a model of its own."""
        cards = self._ask("GET", "/models").get("data")
        if not isinstance(cards, list) or not all(isinstance(card, dict) and "id" in card for card in cards):
            self._is_none("its /v1/models is no list")
        card = next((card for card in cards if card["id"] == model), None)
        if card is None:
            names = [str(card["id"]) for card in cards]
            near = difflib.get_close_matches(model, names, 3, 0.5) or sorted(names)[:10]
            raise UserError(f"{self.url} serves no {model}; it serves {', '.join(near) or 'nothing'}")
        parent = card.get("parent")
        return str(parent) if parent and parent != model else None

    def logprobs(self, model: str, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities of all tokens of the sequences but the first of each, under a model."""
        answer = self._ask("POST", "/completions", completion_fields(model, sequences))
        try:
            return answered_logprobs(answer, sequences)
        except UnusableError as error:
            raise UserError(f"{self.url}: its log-probabilities {error}") from None

    def _ask(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
        except (httpx.TransportError, httpx.UnsupportedProtocol) as error:
            raise UserError(f"endpoint {self.url} cannot be reached: {error}") from None
        try:
            content = answer.json()
        except ValueError:
            self._is_none(f"it answered {answer.status_code} without JSON")
        if not answer.is_success:
            self._refuse(answer.status_code, content, "prompt_logprobs" if body else "a list of models")
        return content if isinstance(content, dict) else self._is_none("it answered no JSON object")

    def _refuse(self, status: int, content: Any, wanted: str) -> NoReturn:
        """Raise what the endpoint said."""
        error = content.get("error", content) if isinstance(content, dict) else {}
        said = str(error.get("message", error) if isinstance(error, dict) else error)[:300]
        if status in (401, 403):
            raise UserError(f"{self.url}: {said} For a key {credentials.how_to_give(KEY)}")
        raise UserError(f"{self.url} refuses {wanted} ({status}): {said}")

    def _is_none(self, why: str) -> NoReturn:
        raise UserError(f"{self.url} is no OpenAI-compatible endpoint: {why}")
