"""Copies of artifact folders in the registry's store: inspected and committed, or not there at all."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from triptych import storage
from triptych.artifact_kinds import kind_in
from triptych.errors import UserError
from triptych.models.identity import difference
from triptych.models.peft_files import FACTS
from triptych.registry import validation
from triptych.registry.facts import Facts, ServingCheck


def store(
    source: str,
    target: str,
    kind: str,
    base_fingerprint: str,
    for_serving: ServingCheck | None,
    prepare: Callable[[Path], None] | None,
) -> Facts:
    """Commit a copy of `source` at `target`, and return its facts.

    The copy is what is inspected, so nothing can be exchanged in between. UserError, and no copy: broken, unsafe, at
    odds with its own triptych.json, or refused by `for_serving` or `prepare`, which may rewrite the copy's files.
    """
    if not storage.exists(source):
        raise UserError(f"there is no folder {source}")
    if storage.read_manifest(source) is not None:
        storage.verify(source)
    folder = storage.local_copy(source)
    with storage.committed(target) as staging:
        try:
            _copy_files(folder, staging)
            _check_note(staging, kind, base_fingerprint)
            facts = validation.check_content(staging, kind)
            if prepare is not None:
                prepare(staging)
                facts = validation.check_content(staging, kind)
        except validation.ArtifactError as error:
            raise validation.ArtifactError(f"{source}: {error}") from error
        why_not = None if for_serving is None else for_serving(kind, facts)
        if why_not is not None:
            raise UserError(f"{source} cannot be served: {why_not}")
    return facts


def copy(folder: Path, target: str) -> None:
    """Commit a copy of a stored artifact."""
    with storage.committed(target) as staging:
        _copy_files(folder, staging)


def read_note(url: str) -> dict[str, object]:
    """The folder's triptych.json; empty for an adapter from elsewhere. UserError where there is no folder."""
    if not storage.exists(url):
        raise UserError(f"there is no folder {url}")
    place = storage.join(url, FACTS)
    try:
        note = json.loads(storage.read_bytes(place)) if storage.exists(place) else {}
    except ValueError as error:
        raise validation.ArtifactError(f"{FACTS} is not valid JSON: {error}") from error
    if not isinstance(note, dict):
        raise validation.ArtifactError(f"{FACTS} holds no JSON object")
    return note


def _copy_files(folder: Path, target: Path) -> None:
    for path in validation.check_files(folder):
        name = path.relative_to(folder)
        if name.as_posix() != storage.MANIFEST:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / name, follow_symlinks=False)


def _check_note(folder: Path, kind: str, base_fingerprint: str) -> None:
    note = read_note(str(folder))
    noted = kind_in(note) or kind
    if noted != kind:
        raise validation.ArtifactError(f"{FACTS}: kind is {noted!r}, it is being registered with {kind!r}")
    if difference(str(note.get("base_fingerprint", base_fingerprint)), base_fingerprint):
        raise validation.ArtifactError(
            f"{FACTS}: base_fingerprint is {note['base_fingerprint']!r}, it is being registered with "
            f"{base_fingerprint!r}"
        )
