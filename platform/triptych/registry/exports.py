"""Exports of registered versions for other tools: the base named, a model card beside, and up to a hub."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych import storage
from triptych.errors import RunError, UserError
from triptych.models.identity import difference
from triptych.models.peft_files import ADAPTER_CONFIG, FACTS, is_whole
from triptych.registry.card import EvaluationResults, Exported, trained_by, write_card
from triptych.registry.from_hub import HUB_ID
from triptych.registry.records import AdapterVersion

_HUB = re.compile(rf"hf://({HUB_ID.pattern})")


def describe(
    folder: Path,
    version: AdapterVersion,
    ancestors: Sequence[AdapterVersion],
    evaluations: Sequence[EvaluationResults],
    base: str | None = None,
) -> str | None:
    """Name the base in peft's files of an exported folder, and write its card; the base's name, None without one.

    Args:
        folder: what was exported.
        version: the version that it is.
        ancestors: the versions that it was made from, nearest first.
        evaluations: what was measured of it.
        base: the name that other tools know it by; None: its id on the hub, where training took it from there.
    """
    name, revision = (base_on_hub(folder) or (None, None)) if base is None else (base, None)
    for file in sorted(folder.rglob(ADAPTER_CONFIG)) if name else ():
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        config |= {"base_model_name_or_path": name, "revision": revision}
        file.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    write_card(
        folder, Exported(version, ancestors, trained_by(folder), name, evaluations, whole_reward=is_whole(folder))
    )
    return name


def check_base_name(base: str, version: AdapterVersion) -> str:
    """The name as other tools read it: of a folder its whole path, or an id on the hub.

    Raises:
        UserError: it is neither, or the folder is another base than the adapter's.
    """
    from triptych.models.base import fingerprint

    folder = Path(base).expanduser()
    if not folder.is_dir():
        if not HUB_ID.fullmatch(base):
            raise UserError(
                f"--base: {base}: no folder; allowed: a folder, or an id of the Hugging Face hub, owner/name"
            )
        return base
    template = version.lineage.get("chat_template")
    if reason := difference(version.base_fingerprint, fingerprint(folder, template)):
        raise UserError(
            f"--base: {base} is another model than {version.base}, on which {version.ref} was trained: {reason}"
        )
    return str(folder.resolve())


def push(folder: Path, place: str, message: str, *, public: bool) -> str:
    """Upload a folder as one commit to `hf://owner/name`, which is made where it does not exist; the commit's URL.

    The hub's own client finds the token (HF_TOKEN, or the file of `hf auth login`).

    Raises:
        UserError: no such name, the hub refuses, or it cannot be reached.
    """
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    match = _HUB.fullmatch(place)
    if not match:
        raise UserError(f"{place}: allowed: a model repository of the Hugging Face hub, hf://owner/name")
    try:
        api = HfApi()
        api.create_repo(match[1], private=not public, exist_ok=True)
        found = api.upload_folder(
            repo_id=match[1], folder_path=folder, commit_message=message, ignore_patterns=[storage.MANIFEST]
        )
    except (HFValidationError, ValueError) as error:
        raise UserError(f"{place}: {error}") from error
    except (OSError, RuntimeError, httpx.HTTPError) as error:
        raise RunError(f"{place}: the upload failed: {error}") from error
    return str(found.commit_url)


def base_on_hub(folder: Path) -> tuple[str, str | None] | None:
    """Id and commit of the base on the hub, by the folder's own files."""
    facts = json.loads((folder / FACTS).read_text(encoding="utf-8")) if (folder / FACTS).is_file() else {}
    if "hub_base" in facts:
        return str(facts["hub_base"]["id"]), facts["hub_base"].get("revision")
    config = folder / ADAPTER_CONFIG
    known = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    name = known.get("base_model_name_or_path")
    return (str(name), known.get("revision")) if name else None
