"""Bundles: the zip file that a job gets, with the call, the recipe and the local files that the recipe names."""

import hashlib
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import BaseModel

from triptych.cluster.remote_call import FILE, FOLDER, RECIPE, RemoteCall, dump_call
from triptych.errors import UserError
from triptych.models.base import BUILT_IN
from triptych.models.weights import weight_files
from triptych.recipe import Recipe, Source, dump_recipe

LIMIT = 95 * 2**20
"""Bytes of a compressed bundle; Ray's dashboard takes 100 MiB a request."""

_ANCIENT = (1980, 1, 1, 0, 0, 0)  # one date for all, so that the same content is the same archive, and is sent once
_MODEL_FILES = ("*.json", "*.jinja", "*.txt", "*.model")
_OTHER_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "*.gguf", "*.onnx", "tf_model.h5", "flax_model.msgpack")
"""Weights that may lie beside those that are read, and stay here."""
_TABLES = ("*.parquet", "*.arrow")
_ADVICE = "put large files where the cluster reads them (s3://..., gs://..., or a folder that its nodes share)"
_T = TypeVar("_T")


@dataclass
class Bundle:
    """Call, texts and files that a job gets, by their path in its working folder."""

    call: RemoteCall
    texts: dict[str, str] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the files, uncompressed."""
        return sum(path.stat().st_size for path in self.files.values())


def bundle_recipe(recipe: Recipe, call: RemoteCall) -> Bundle:
    """The bundle of a recipe, its local data files, and its base if that is a local folder.

    Paths in the recipe are changed to those in the bundle. A relative path keeps its name, so that the run's folder is
    the same wherever it ran. An absolute path that is not on this machine is taken for one of the cluster.

    Raises:
        UserError: a relative path does not exist here.
    """
    bundle = Bundle(call)
    moved = _map_sources(recipe, lambda path: _add_file(bundle, path))
    base = _add_model(bundle, recipe.model.base)
    moved = moved.model_copy(update={"model": moved.model.model_copy(update={"base": base})})
    bundle.texts[RECIPE] = dump_recipe(moved)
    return bundle


def bundle_folder(folder: str, call: RemoteCall) -> Bundle:
    """The bundle of a local folder, under the name FOLDER. UserError if there is no such folder."""
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise UserError(f"{folder}: no such folder on this machine")
    files = {f"{FOLDER}/{path.relative_to(root).as_posix()}": path for path in root.rglob("*") if path.is_file()}
    return Bundle(call, files=files)


@contextmanager
def archive(bundle: Bundle) -> Iterator[Path]:
    """The bundle as a zip file for the time of the block. UserError if it is larger than LIMIT."""
    with tempfile.TemporaryDirectory(prefix="triptych-") as folder:
        path = Path(folder) / "bundle.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as packed:
            texts = {FILE: dump_call(bundle.call).decode()} | bundle.texts
            for name, text in sorted(texts.items()):
                packed.writestr(_entry(name), text)
            for name, file in sorted(bundle.files.items()):
                with file.open("rb") as source, packed.open(_entry(name), "w", force_zip64=True) as target:
                    while chunk := source.read(2**20):
                        target.write(chunk)
                if path.stat().st_size > LIMIT:
                    break
        size = path.stat().st_size
        if size > LIMIT:
            raise UserError(
                f"{', '.join(_largest(bundle.files))}: too much to send with a job ({readable(bundle.size)}; allowed: "
                f"{readable(LIMIT)} compressed); {_ADVICE}"
            )
        yield path


def readable(size: int) -> str:
    """Bytes for people."""
    return f"{size / 2**20:.1f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _ANCIENT)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def _largest(files: Mapping[str, Path]) -> list[str]:
    sizes = sorted(((path.stat().st_size, path) for path in files.values()), reverse=True)
    return [f"{path} ({readable(size)})" for size, path in sizes[:3]]


def _map_sources(value: _T, move: Callable[[str], str]) -> _T:
    """The same value with the path of every source in it moved."""
    changed: Any = value
    if isinstance(value, Source):
        changed = value.changed(lambda origin: {} if origin.path is None else {"path": move(origin.path)})
    elif isinstance(value, BaseModel):
        changed = value.model_copy(update={name: _map_sources(part, move) for name, part in value})
    elif isinstance(value, dict):
        changed = {key: _map_sources(part, move) for key, part in value.items()}
    elif isinstance(value, tuple):
        changed = tuple(_map_sources(part, move) for part in value)
    return changed


def _add_file(bundle: Bundle, path: str) -> str:
    """Add a data file, and return its path in the job's working folder; a path of the cluster is returned unchanged."""
    if "://" in path and not path.startswith("file://"):
        return path
    file = Path(path.removeprefix("file://")).expanduser()
    if file.is_dir() and (tables := [table for pattern in _TABLES for table in file.glob(pattern)]):
        return _add_files(bundle, file, sorted(tables))
    if not file.is_file():
        if file.is_absolute():
            return path
        raise UserError(f"{path}: no such file on this machine")
    name = _name(file, lambda: _digest(file))
    bundle.files[name] = file
    return name


def _add_model(bundle: Bundle, base: str) -> str:
    folder = Path(base).expanduser()
    if base in BUILT_IN or not folder.is_dir():
        return base
    return _add_files(bundle, folder, sorted({*_beside_weights(folder), *weight_files(folder)}))


def _beside_weights(folder: Path) -> list[Path]:
    """Configuration and tokenizer of a model; of one with Python files all but weights, for code may read any file."""
    if next(folder.rglob("*.py"), None) is None:
        return [path for pattern in _MODEL_FILES for path in folder.glob(pattern)]
    within = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    hidden = {path for path in within if any(part.startswith(".") or part == "__pycache__" for part in path.parts)}
    weights = {path for path in within for pattern in _OTHER_WEIGHTS if path.match(pattern)}
    return [folder / path for path in within if path not in hidden | weights]


def _add_files(bundle: Bundle, folder: Path, files: list[Path]) -> str:
    """Add files of a folder, and return the folder's path in the job's working folder."""
    name = _name(folder, lambda: hashlib.sha256("".join(map(_digest, files)).encode()).hexdigest())
    bundle.files |= {f"{name}/{path.relative_to(folder).as_posix()}": path for path in files}
    return name


def _name(path: Path, digest: Callable[[], str]) -> str:
    """Name in the archive: a relative path unchanged, another by its content's digest, the same from any machine."""
    inside = not path.is_absolute() and ".." not in path.parts
    return path.as_posix() if inside else str(PurePosixPath("inputs", f"{digest()[:12]}-{path.name}"))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
