"""AdapterDrop: an adapter that does without the bottleneck adapters of its first blocks (Rücklé et al. 2021, arXiv
2010.11918), as a folder of its own. The dropped ones' tensors stay, so that the choice can be made again.
"""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from triptych import storage
from triptych.artifact_kinds import kind_in
from triptych.errors import UserError
from triptych.models.adapter import load_adapter
from triptych.models.peft_files import FACTS
from triptych.recipe.method import PARTS

_BOTTLENECKS = tuple(name for name, part in PARTS.items() if part.family == "bottleneck")

_BLOCK = re.compile(r"(?:^|\.)layers\.(\d+)\.(?:self_attn|mlp)\.down\.")
"""Number of the block, in the name of a bottleneck adapter's tensor."""


def export_without(folder: Path, target: str, layers: int) -> None:
    """Commit a copy of an adapter's folder that drops its bottleneck adapters in so many first blocks.

    Raises:
        UserError: the target exists, the adapter has no bottleneck adapters, or they stand in fewer blocks.
    """
    if storage.exists(target):
        raise UserError(f"{target} exists already: name a new folder")
    facts = json.loads((folder / FACTS).read_text()) if (folder / FACTS).is_file() else {}
    if not any(part["name"] in _BOTTLENECKS for part in _parts(facts)):
        raise UserError(
            f"--drop-layers: {folder.name} has no bottleneck adapters; allowed for {', '.join(_BOTTLENECKS)}"
        )
    named = load_adapter(folder, kind_in(facts) or "policy").weights
    blocks = 1 + max(int(found[1]) for name in named if (found := _BLOCK.search(name)))
    if layers >= blocks:
        raise UserError(f"--drop-layers: {layers} of {blocks} layers; allowed: 0 to {blocks - 1}")
    with storage.committed(target) as staging:
        shutil.copytree(folder, staging, dirs_exist_ok=True, ignore=shutil.ignore_patterns(storage.MANIFEST))
        for note in staging.rglob(FACTS):  # an ensemble's members have their own
            facts = json.loads(note.read_text())
            for part in _parts(facts):
                if part["name"] in _BOTTLENECKS:
                    part["drop_layers"] = layers
            note.write_text(json.dumps(facts, indent=2, sort_keys=True))


def _parts(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Method of an adapter, or of each part of a hybrid, as JSON; empty for an adapter from elsewhere."""
    method = facts.get("method", [])
    return method if isinstance(method, list) else [method]
