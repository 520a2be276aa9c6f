"""Who may ask."""

from collections.abc import Mapping
from concurrent.futures import Executor

from triptych.registry import Registry
from triptych.serve.errors import invalid_key
from triptych.serve.fresh import Fresh

SEEN_AFTER_S = 0.5
"""Age at which a key is checked again: a revoked key stops within about this time."""

_LONGEST = 256


class KeyCheck:
    """The API keys of the registry; `required=False` lets everybody in."""

    def __init__(self, registry: Registry, pool: Executor, *, required: bool) -> None:
        self._known: Fresh[str, bool] = Fresh(lambda key: registry.check_key(key) is not None, pool, SEEN_AFTER_S)
        self._required = required

    async def __call__(self, headers: Mapping[str, str]) -> None:
        """ApiError 401 unless the `Authorization` header carries a key that is valid now."""
        if not self._required:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        key = key.strip()
        if scheme.lower() != "bearer" or not key:
            raise invalid_key(missing=True)
        if len(key) > _LONGEST or not key.isascii() or not key.isprintable() or not await self._known.get(key):
            raise invalid_key(missing=False)
