"""Where things that are made or fetched once are kept."""

import os
from pathlib import Path

from platformdirs import user_cache_dir

from triptych.errors import UserError


def cache_dir(*parts: str) -> Path:
    """A folder (made if absent) under `$TRIPTYCH_CACHE`, or else under the user's cache folder."""
    root = Path(os.environ.get("TRIPTYCH_CACHE") or user_cache_dir("triptych"))
    folder = root.expanduser().joinpath(*parts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the cache folder {folder}: {error.strerror}; set TRIPTYCH_CACHE") from error
    return folder
