"""Data sets of the Hugging Face hub: their rows, and the commit that a branch or tag stands for."""

import json
import re
from typing import TYPE_CHECKING, Any

from triptych import storage
from triptych.data.class_names import named, names_of_features
from triptych.data.formats import Numbered
from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.recipe.data import Origin

_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def hub_records(origin: "Origin") -> Numbered:
    """The numbered records of a split. UserError: it cannot be read, or only a script of its own could read it."""
    import datasets
    import httpx
    import yaml

    try:
        found = datasets.load_dataset(
            f"hf://datasets/{_repository(origin)}",  # never a folder of that name in the working directory
            origin.config,
            split=origin.split,
            revision=origin.revision,
            streaming="[" not in origin.split,  # a slice is cut from the whole split
        )
        names = names_of_features(found.features.to_dict() if found.features else {})
        yield from enumerate((named(record, names) for record in found), start=1)
    except (
        OSError,
        ValueError,
        RuntimeError,
        TypeError,
        KeyError,
        httpx.HTTPError,
        yaml.YAMLError,
        datasets.exceptions.DatasetsError,
    ) as error:
        raise UserError(f"{origin.file} (split {origin.split}): cannot be read: {error}") from error


def pinned(origin: "Origin", record: str) -> dict[str, Any]:
    """The commit of a data set of the hub as the `revision` to read; nothing of any other origin, or without the hub.

    `record` is the URL of a JSON file that keeps it, by data set and revision: who comes again reads the same rows.

    Raises:
        UserError: the hub has no such data set or revision, or cannot be asked.
    """
    if not origin.file.startswith("hf://") or _COMMIT.fullmatch(origin.revision or "") or _offline():
        return {}
    commits = commits_of(record)
    key = f"{origin.file}@{origin.revision or 'main'}"
    if key not in commits:
        commits[key] = _commit(origin)
        storage.write_bytes(record, json.dumps(commits, indent=2).encode())
    return {"revision": commits[key]}


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def commits_of(record: str) -> dict[str, str]:
    """The commits that a record keeps; empty where there is none."""
    return dict(json.loads(storage.read_bytes(record))) if storage.exists(record) else {}


def _commit(origin: "Origin") -> str:
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        return str(HfApi().dataset_info(_repository(origin), revision=origin.revision).sha)
    except (OSError, HFValidationError, httpx.HTTPError) as error:
        raise UserError(
            f"{origin.file}, revision {origin.revision or 'main'}: not found on the hub: {error}"
        ) from error


def _repository(origin: "Origin") -> str:
    match = _HUB.fullmatch(origin.file)
    if not match:
        raise UserError(f"{origin.file}: a data set of the Hugging Face hub is written hf://owner/name")
    return match[1]
