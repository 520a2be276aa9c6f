"""Who may ask."""

from collections.abc import Mapping
from concurrent.futures import Executor

from triptych.registry import Key, Registry
from triptych.serve.errors import invalid_key, not_admin
from triptych.serve.fresh import Fresh

SEEN_AFTER_S = 0.5
"""Age at which a key is checked again: a revoked key stops within about this time."""

_LONGEST = 256


class KeyCheck:
    """The API keys of the registry; `required=False` lets everybody ask the models."""

    def __init__(self, registry: Registry, pool: Executor, *, required: bool) -> None:
        self._known: Fresh[str, Key | None] = Fresh(lambda key: registry.check_key(key), pool, SEEN_AFTER_S)
        self._required = required

    async def __call__(self, headers: Mapping[str, str]) -> None:
        """ApiError 401 unless the `Authorization` header carries a key that is valid now."""
        if self._required:
            await self._key(headers)

    async def admin(self, headers: Mapping[str, str]) -> Key:
        """The admin key in the header; ApiError 401 where there is no key, 403 where it is none for admins."""
        key = await self._key(headers)
        if not key.admin:
            raise not_admin()
        return key

    async def _key(self, headers: Mapping[str, str]) -> Key:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise invalid_key(missing=True)
        sound = len(key) <= _LONGEST and key.isascii() and key.isprintable()
        found = await self._known.get(key) if sound else None
        if found is None:
            raise invalid_key(missing=False)
        return found
