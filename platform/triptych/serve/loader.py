"""Adapters from the registry to folders that the engine can read again at any time."""

import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path

from triptych import storage
from triptych.cache import cache_dir
from triptych.errors import RunError
from triptych.models.peft_files import ADAPTER_CONFIG, largest_rank
from triptych.registry import AdapterVersion

logger = logging.getLogger("ray.serve")


class MisfitError(Exception):
    """The adapter exists, but this engine cannot serve it; the message is fit for a client."""


def misfit(version: AdapterVersion, base_fingerprint: str, max_rank: int) -> str | None:
    """Why an engine on this base cannot serve the adapter; None if it can."""
    if not version.servable:
        return version.why_not or "it cannot be served"
    if version.base_fingerprint != base_fingerprint:
        return f"it was trained on another base ({version.base})"
    rank = largest_rank(json.loads(storage.read_bytes(storage.join(version.url, ADAPTER_CONFIG))))
    if rank > max_rank:
        return f"its rank is {rank}, and engine.max_lora_rank is {max_rank}"
    return None


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
