"""Which models there are: the base, and the registry's adapters that fit it."""

import re
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from triptych.recipe.serve import ServeConfig
from triptych.registry import AdapterVersion, Registry, UnknownAdapter
from triptych.serve.errors import ApiError, unknown_model
from triptych.serve.fresh import SEEN_AFTER_S, Fresh
from triptych.serve.loader import misfit

_NAME = r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?"
_REFERENCE = re.compile(rf"{_NAME}(@{_NAME})?")


@dataclass(frozen=True)
class _Found:
    version: AdapterVersion
    reason: str | None
    """Why it is not served here, if so."""


class Catalog:
    """Names that clients use, to names that the engine knows: the base's id, or `name@version`.

    A name that is not one by its form never reaches the registry. All answers are at most SEEN_AFTER_S old.
    """

    def __init__(self, config: ServeConfig, base_fingerprint: str, registry: Registry, pool: Executor) -> None:
        self._config = config
        self._fingerprint = base_fingerprint
        self._registry = registry
        self._reasons: dict[str, str | None] = {}
        self._found = Fresh(self._find, pool, SEEN_AFTER_S)
        self._cards = Fresh(self._list, pool, SEEN_AFTER_S)

    async def resolve(self, model: str | None) -> str:
        """The engine's name for what a client asked for; ApiError 404 if there is none, 400 if it asked for none."""
        if not model:
            raise ApiError(400, "invalid_request", "You must name a model.", param="model")
        if model == self._config.model_id:
            return model
        if not _REFERENCE.fullmatch(model):
            raise unknown_model(model)
        found = await self._found.get(model)
        if found is None:
            raise unknown_model(model)
        if found.reason is not None:
            raise unknown_model(model, found.reason)
        return found.version.ref

    async def cards(self) -> list[dict[str, Any]]:
        """Every model that is served: the base, and each adapter by its name and by `name@version`."""
        return await self._cards.get(None)

    async def card(self, model: str) -> dict[str, Any]:
        """One model under the name that the client used; ApiError 404 if there is none."""
        name = await self.resolve(model)
        cards = {card["id"]: card for card in await self.cards()}
        if name not in cards:
            raise unknown_model(model)
        return {**cards[name], "id": model}

    def unfit(self, version: AdapterVersion) -> str | None:
        """Why the version is not served here; None if it is. Versions never change, so neither does the answer."""
        if version.ref not in self._reasons:
            self._reasons[version.ref] = misfit(version, self._fingerprint, self._config.engine.max_lora_rank)
        return self._reasons[version.ref]

    def _find(self, model: str) -> _Found | None:
        if self._config.adapters != "all" and model.partition("@")[0] not in self._config.adapters:
            return None
        try:
            version = self._registry.get(model)
        except UnknownAdapter:
            return None
        return _Found(version, self.unfit(version))

    def _list(self, _: None) -> list[dict[str, Any]]:
        base = self._config.model_id
        cards = [{"id": base, "object": "model", "created": 0, "owned_by": "triptych", "root": base, "parent": None}]
        for adapter in self._registry.adapters():
            if self._config.adapters != "all" and adapter.name not in self._config.adapters:
                continue
            served = [version for version in self._registry.versions(adapter.name) if self.unfit(version) is None]
            plain = self._find(adapter.name)
            if plain is not None and plain.reason is None:
                cards.append(self._card(adapter.name, plain.version))
            cards.extend(self._card(version.ref, version) for version in served)
        return cards

    def _card(self, model: str, version: AdapterVersion) -> dict[str, Any]:
        return {
            "id": model,
            "object": "model",
            "created": _seconds(version.created_at),
            "owned_by": "triptych",
            "root": version.ref,
            "parent": self._config.model_id,
        }


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
