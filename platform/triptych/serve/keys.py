"""Authentication of a request by the key in its headers."""

from collections.abc import Mapping
from concurrent.futures import Executor

from triptych.registry import Key, Registry
from triptych.registry.remote import ROUTES
from triptych.serve.caller import ANONYMOUS, Caller, caller_with
from triptych.serve.errors import invalid_key
from triptych.serve.ttl_cache import SEEN_AFTER_S, TtlCache

_LONGEST = 256


class KeyCheck:
    """Checks API keys against the registry; with `required=False` only on the admin routes.

    A revoked key stops within about SEEN_AFTER_S.
    """

    def __init__(self, registry: Registry, pool: Executor, *, required: bool) -> None:
        self._known: TtlCache[str, Key | None] = TtlCache(lambda key: registry.check_key(key), pool, SEEN_AFTER_S)
        self._required = required

    async def caller(self, path: str, headers: Mapping[str, str]) -> Caller:
        """The caller of `path`; ApiError 401 unless the `Authorization` header carries a key that is valid now."""
        if self._required or path == ROUTES or path.startswith(f"{ROUTES}/"):
            return caller_with(await self._key(headers))
        return ANONYMOUS

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
