"""The weight files of a model's folder: those that transformers reads, and no other that lies beside them."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from triptych.cache import cache_dir
from triptych.errors import UserError
from triptych.models.peft_files import MODEL_WEIGHTS
from triptych.storage import digest_of

if TYPE_CHECKING:
    from torch import Tensor

INDEX = f"{MODEL_WEIGHTS}.index.json"
"""File that says which file each tensor of a model in several files is in."""


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face folder: those that its index names, else `model.safetensors`.

    Raises:
        UserError: there are none, one is missing, or the folder holds both, of which tools read one or the other.
    """
    single, index = folder / MODEL_WEIGHTS, folder / INDEX
    names = files_of(json.loads(index.read_text(encoding="utf-8")), index) if index.is_file() else [MODEL_WEIGHTS]
    if single.is_file() and names != [MODEL_WEIGHTS]:
        raise UserError(
            f"model.base: {folder} holds {MODEL_WEIGHTS}, and an index that names {names[0]}: transformers reads the "
            f"one and vLLM the others; remove {MODEL_WEIGHTS} or {INDEX}"
        )
    for name in names:
        if not (folder / name).is_file():
            what = "which its index names" if index.is_file() else f"and no {INDEX}"
            raise UserError(
                f"model.base: {folder} has no {name}, {what}; weights of other names or formats are not loaded"
            )
    return [folder / name for name in names]


def files_of(index: Any, path: Path) -> list[str]:
    """The names of the files of an index, sorted; `path` is where it was read, for errors.

    Raises:
        UserError: it is no index, or a name leads out of the folder.
    """
    placed = index.get("weight_map") if isinstance(index, Mapping) else None
    if not isinstance(placed, Mapping) or not placed or not all(isinstance(name, str) for name in placed.values()):
        raise UserError(f"model.base: {path} is no index: it has no weight_map of tensors and files")
    for name in placed.values():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise UserError(f"model.base: {path} names {name}, which is outside the folder; allowed: files in it")
    return sorted(set(placed.values()))


def without_other_weights(folder: Path) -> Path:
    """The folder, or where other safetensors files lie beside its weights, one of links to all but them, on this node.

    It is for readers that take every safetensors file of a folder without an index, or a `consolidated.safetensors`
    in place of those of an index, as vLLM does.
    """
    own = set(weight_files(folder))
    kept = [entry for entry in sorted(folder.resolve().iterdir()) if entry.suffix != ".safetensors"]
    if own >= {entry for entry in folder.iterdir() if entry.suffix == ".safetensors"}:
        return folder
    links = {entry.name: str(entry) for entry in [*kept, *(file.absolute() for file in own if file.parent == folder)]}
    view = cache_dir("views") / digest_of(links)[:16]
    if not view.is_dir():
        made = Path(tempfile.mkdtemp(dir=view.parent))
        for name, target in links.items():
            (made / name).symlink_to(target)
        try:
            made.rename(view)
        except OSError:  # another process was faster
            shutil.rmtree(made)
    return view


def read_weight(folder: Path, name: str) -> "Tensor":
    """One tensor of a Hugging Face folder. KeyError: it has none of this name."""
    from safetensors import safe_open

    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            if name in tensors.keys():  # noqa: SIM118 (not a dict)
                return tensors.get_tensor(name)
    raise KeyError(f"{folder} has no {name}")


def read_weights(folder: Path) -> "dict[str, Tensor]":
    """All tensors of a Hugging Face folder by name."""
    from safetensors.torch import load_file

    return {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}
