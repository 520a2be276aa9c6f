"""Catalog of the models served: the base, and the registry's adapters that fit it."""

import logging
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from triptych.recipe.base import NAME_PATTERN
from triptych.recipe.serve import ServeConfig
from triptych.registry import AdapterVersion, Registry, UnknownAdapter
from triptych.serve.capabilities import MisfitError, engine_for, engines_of
from triptych.serve.errors import ApiError, unknown_model
from triptych.serve.ttl_cache import SEEN_AFTER_S, TtlCache

logger = logging.getLogger("ray.serve")

_REFERENCE = re.compile(rf"{NAME_PATTERN}(@{NAME_PATTERN})?")


@dataclass(frozen=True)
class Route:
    """The engine and model that a request is sent to, and the form of the name that chose them."""

    engine: str
    """Name of the engine that answers."""
    model: str
    """Name of the model there: the base's id, or `name@version`. An engine never sees an alias."""
    version: AdapterVersion | None
    """The adapter version; None for the base."""
    chosen_by: Literal["base", "version", "alias", "name"]
    """Form of the name that the client used: the base's id, `name@3`, `name@alias`, or the bare `name`."""


@dataclass(frozen=True)
class _Fit:
    """Engine that serves a version, or the reason why none does."""

    engine: str | None
    reason: str


@dataclass(frozen=True)
class _Found:
    version: AdapterVersion
    fit: _Fit


class Catalog:
    """Resolves the names that clients use to routes.

    A malformed name never reaches the registry. All answers are at most SEEN_AFTER_S old. A version that cannot be
    read or judged is left out, and takes no other down with it.
    """

    def __init__(
        self,
        config: ServeConfig,
        base_fingerprint: str,
        registry: Registry,
        pool: Executor,
        count_unreadable: Callable[[int], None],
    ) -> None:
        """`count_unreadable` is told how many versions are left out because they cannot be read or judged."""
        self._config = config
        self._fingerprint = base_fingerprint
        self._registry = registry
        self._engines = engines_of(config)
        self._fits: dict[str, _Fit] = {}
        self._unreadable: set[str] = set()
        self._count_unreadable = count_unreadable
        count_unreadable(0)
        self._found = TtlCache(self._find, pool, SEEN_AFTER_S)
        self._cards = TtlCache(self._list, pool, SEEN_AFTER_S)

    async def resolve(self, model: str | None) -> Route:
        """The route to the model that a client asked for; ApiError 404 if there is none, 400 if it asked for none."""
        if not model:
            raise ApiError(400, "invalid_request", "You must name a model.", param="model")
        if model == self._config.model_id:
            return Route(next(iter(self._engines)), model, None, "base")
        if not _REFERENCE.fullmatch(model):
            raise unknown_model(model)
        found = await self._found.get(model)
        if found is None:
            raise unknown_model(model)
        if found.fit.engine is None:
            raise unknown_model(model, found.fit.reason)
        return Route(found.fit.engine, found.version.ref, found.version, _chosen_by(model))

    async def cards(self) -> list[dict[str, Any]]:
        """Every model that is served: the base, and each adapter by its name and by `name@version`."""
        return await self._cards.get(None)

    async def card(self, model: str) -> dict[str, Any]:
        """One model under the name that the client used; ApiError 404 if there is none."""
        name = (await self.resolve(model)).model
        cards = {card["id"]: card for card in await self.cards()}
        if name not in cards:
            raise unknown_model(model)
        return {**cards[name], "id": model}

    def _fit(self, version: AdapterVersion) -> _Fit:
        """The engine for the version. Versions never change, so neither does the answer."""
        if version.ref not in self._fits:
            try:
                engine = engine_for(version, self._registry, self._fingerprint, self._engines)
                self._fits[version.ref] = _Fit(engine, "")
            except MisfitError as error:
                self._fits[version.ref] = _Fit(None, str(error))
            except Exception:  # whatever is wrong with one version, the others are served
                logger.warning("%s is left out: its files cannot be read", version.ref, exc_info=True)
                self._note(version.ref, unreadable=True)
                return _Fit(None, "its files cannot be read")
            self._note(version.ref, unreadable=False)
        return self._fits[version.ref]

    def _note(self, ref: str, *, unreadable: bool) -> None:
        """Keep the count of versions that cannot be read: it may be mended, and is asked again each time."""
        (self._unreadable.add if unreadable else self._unreadable.discard)(ref)
        self._count_unreadable(len(self._unreadable))

    def _find(self, model: str) -> _Found | None:
        if self._config.adapters != "all" and model.partition("@")[0] not in self._config.adapters:
            return None
        try:
            version = self._registry.get(model)
        except UnknownAdapter:
            return None
        return _Found(version, self._fit(version))

    def _list(self, _: None) -> list[dict[str, Any]]:
        base = self._config.model_id
        cards = [{"id": base, "object": "model", "created": 0, "owned_by": "triptych", "root": base, "parent": None}]
        for adapter in self._registry.adapters():
            if self._config.adapters != "all" and adapter.name not in self._config.adapters:
                continue
            served = [version for version in self._versions(adapter.name) if self._fit(version).engine]
            plain = self._find(adapter.name)
            if plain is not None and plain.fit.engine is not None:
                cards.append(self._card(adapter.name, plain.version))
            cards.extend(self._card(version.ref, version) for version in served)
        return cards

    def _versions(self, name: str) -> Sequence[AdapterVersion]:
        """All versions of an adapter; none of one that was removed since its name was read."""
        try:
            return self._registry.versions(name)
        except UnknownAdapter:
            return ()

    def _card(self, model: str, version: AdapterVersion) -> dict[str, Any]:
        return {
            "id": model,
            "object": "model",
            "created": _seconds(version.created_at),
            "owned_by": "triptych",
            "root": version.ref,
            "parent": self._config.model_id,
        }


def _chosen_by(model: str) -> Literal["version", "alias", "name"]:
    _, at, selector = model.partition("@")
    return ("version" if selector.isdigit() else "alias") if at else "name"


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())
