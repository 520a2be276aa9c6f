"""Adapters from the registry to folders that the engine can read again at any time."""

import logging
import shutil
from contextlib import suppress
from pathlib import Path

from triptych import storage
from triptych.cache import cache_dir
from triptych.errors import RunError
from triptych.registry import AdapterVersion

logger = logging.getLogger("ray.serve")


def fetch(version: AdapterVersion) -> Path:
    """A verified copy of the adapter in this node's cache, under its digest.

    vLLM reads an adapter again whenever it left the engine's memory, in the middle of its step loop: so what it reads
    is a copy that nobody else removes. RunError when the artifact is not what was registered.
    """
    cache = cache_dir("served")
    target = cache / version.sha256
    if storage.exists(str(target)):
        try:
            storage.verify(str(target))
        except RunError as error:
            logger.warning("the cached copy of %s is damaged, and is fetched anew: %s", version.ref, error)
            storage.remove(str(target))
        else:
            return target
    if storage.verify(version.url).digest != version.sha256:
        raise RunError(f"{version.ref}: {version.url} is not what was registered (its digest differs)")
    source = storage.local_copy(version.url, cache)
    if source != target:
        with suppress(storage.AlreadyCommittedError), storage.committed(str(target)) as staging:
            shutil.copytree(source, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(storage.MANIFEST))
    if storage.verify(str(target)).digest != version.sha256:
        storage.remove(str(target))
        raise RunError(f"{version.ref}: {version.url} changed while it was copied")
    return target
