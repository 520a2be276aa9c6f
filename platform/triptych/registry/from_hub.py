"""Adapters of the Hugging Face hub as folders that the registry reads: one commit, and no files but an adapter's."""

import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from triptych import storage
from triptych.errors import RunError, UserError
from triptych.models.peft_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, FACTS

SCHEME = "hf://"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""Id of a repository, owner/name."""
_PLACE = re.compile(rf"{SCHEME}({HUB_ID.pattern})(?:@([\w./-]+))?")
_SUFFIXES = (".json", ".safetensors")


@contextmanager
def local_folder(place: str) -> Iterator[tuple[str, str]]:
    """The folder of an adapter, and the place that its lineage names: of `hf://owner/name[@revision]`, the commit.

    Other places are given back as they are. The hub's own client finds the token.

    Raises:
        UserError: no such place, or no adapter there.
        RunError: the hub cannot be reached.
    """
    if not place.startswith(SCHEME):
        yield place, storage.absolute(place)
        return
    match = _PLACE.fullmatch(place)
    if match is None:
        raise UserError(f"{place}: allowed: a model repository of the Hugging Face hub, hf://owner/name[@revision]")
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        commit = _download(place, match[1], match[2], Path(folder))
        yield folder, f"{SCHEME}{match[1]}@{commit}"


def _download(place: str, name: str, revision: str | None, folder: Path) -> str:
    import httpx
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        found = HfApi().model_info(name, revision=revision)
        for file in wanted(place, [one.rfilename for one in found.siblings or ()]):
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(hf_hub_download(name, file, revision=found.sha), target)
        return str(found.sha)
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise UserError(f"{place}: the hub has no such adapter, or not for this token: {error}") from error
    except (OSError, httpx.HTTPError) as error:
        raise RunError(f"{place}: the download failed: {error}") from error


def wanted(place: str, files: Collection[str]) -> list[str]:
    """Files of a repository that are an adapter's: peft's two, or where triptych.json says what it is, all it may have.

    Raises:
        UserError: it has none of them.
    """
    safe = [name for name in files if not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts]
    if FACTS in safe:
        return [name for name in safe if name.endswith(_SUFFIXES)]
    if missing := [name for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS) if name not in safe]:
        there = ", ".join(sorted(files)[:8]) or "nothing"
        raise UserError(f"{place}: {missing[0]} is missing, it has {there}; allowed: what peft saves as safetensors")
    return [ADAPTER_CONFIG, ADAPTER_WEIGHTS]
