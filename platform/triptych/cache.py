"""Cache folder for files that are made or fetched once."""

import os
from pathlib import Path

from triptych.errors import UserError


def cache_dir(*parts: str) -> Path:
    """A folder, made if absent, under `$TRIPTYCH_CACHE` or else the user's cache folder."""
    root = Path(os.environ.get("TRIPTYCH_CACHE") or _default())
    folder = root.expanduser().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the cache folder {folder}: {error.strerror}; set TRIPTYCH_CACHE") from error
    return folder


def _default() -> str:
    from platformdirs import user_cache_dir  # training by itself needs no cache, and runs without this package

    return user_cache_dir("triptych")
