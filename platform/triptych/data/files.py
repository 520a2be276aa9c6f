"""Files of rows wherever they are: any fsspec URL, compressed or not, a folder of tables, a data set of the hub."""

import difflib
import gzip
import io
import json
import lzma
import re
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any, Literal, cast

import fsspec

from triptych import storage
from triptych.data.formats import FORMATS, Numbered
from triptych.data.hub import hub_records
from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.recipe.data import Origin

COMPRESSED = (".gz", ".zst", ".zip")
"""Suffixes of compressed files, behind the suffix of what is in them; a .zip holds one file, which says it itself."""
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""Words by which names of files tell their split, as the hub reads them."""
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_SPLIT_NAME = re.compile(rf"(?<![a-z])({'|'.join(sorted(_SPLIT_OF, key=len, reverse=True))})(?![a-z])", re.IGNORECASE)
_UNREADABLE = (OSError, EOFError, ImportError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_BLOCK = 1 << 20


def records(origin: "Origin") -> Numbered:
    """The numbered records of an origin. UserError: it cannot be read."""
    path = origin.file
    if path.startswith("hf://"):
        yield from hub_records(origin)
        return
    try:
        files = _files(path, origin.split)
        number = 0
        for file in files:
            for line, record in _file(file):
                number = number + 1 if len(files) > 1 else line
                yield number, record
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_near(path)}") from None
    except (*_UNREADABLE, RuntimeError) as error:  # RuntimeError: zipfile's word for a password
        raise UserError(f"{path}: cannot be read: {error}") from error


def absolute(origin: "Origin") -> dict[str, str]:
    """Fields of an origin that make it the same from another working directory."""
    return {} if origin.file.startswith("hf://") else {"path": storage.absolute(origin.file)}


def counted(path: str) -> Literal["line", "row"]:
    """The word for what the numbers of a path's records count."""
    suffix, _ = _suffixes(path)
    return "line" if (suffix in FORMATS and not FORMATS[suffix].by_row) or suffix == ".zip" else "row"


def quick_rows(path: str, split: str) -> int | None:
    """Number of rows of a local file or folder, without reading it all; None where that cannot be told."""
    import pyarrow.parquet as pq

    try:
        files = [Path(file) for file in _files(path, split)]
        if all(file.suffix == ".parquet" for file in files):
            return sum(int(pq.read_metadata(file).num_rows) for file in files)
        if len(files) == 1 and files[0].suffix in (".jsonl", ".csv", ".tsv"):
            return max(_count_lines(files[0]) - (files[0].suffix != ".jsonl"), 0)
    except (*_UNREADABLE, UserError):
        pass
    return None


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with path.open("rb") as file:
        for block in iter(lambda: file.read(_BLOCK), b""):
            lines, last = lines + block.count(b"\n"), block
    return lines + (not last.endswith(b"\n"))


def _file(path: str) -> Numbered:
    suffix, packed = _suffixes(path)
    if suffix not in FORMATS and packed != ".zip":
        raise UserError(
            f"{path}: {suffix or 'no'} file suffix; allowed: {', '.join(FORMATS)}, each also with "
            f"{', '.join(COMPRESSED)} behind it, a folder of .parquet or .arrow files, hf://owner/name"
        )
    with fsspec.open(path, "rb") as raw, _unpacked(raw, packed, path) as (stream, name):
        inner = PurePosixPath(name).suffix.lower() if packed == ".zip" else suffix
        if inner not in FORMATS:
            raise UserError(f"{path}: holds {name}; allowed: one file of {', '.join(FORMATS)}")
        chosen = FORMATS[inner]
        yield from chosen.read(io.BytesIO(stream.read()) if packed and chosen.table else stream, path)


def _suffixes(path: str) -> tuple[str, str]:
    """Suffix of the rows' format, and of what they are compressed with; empty where there is none."""
    name = PurePosixPath(path)
    packed = name.suffix.lower() if name.suffix.lower() in COMPRESSED else ""
    return (PurePosixPath(name.stem) if packed else name).suffix.lower(), packed


@contextmanager
def _unpacked(raw: IO[bytes], packed: str, path: str) -> Iterator[tuple[IO[bytes], str]]:
    """The stream of what is in a compressed file, and its name where the file says one."""
    import pyarrow

    if packed == ".gz":
        yield cast("IO[bytes]", gzip.GzipFile(fileobj=raw)), ""
    elif packed == ".zst":
        yield io.BufferedReader(cast("Any", pyarrow.CompressedInputStream(raw, "zstd")), _BLOCK), ""
    elif packed == ".zip":
        with zipfile.ZipFile(raw) as archive:
            inside = _only(archive, path)
            with archive.open(inside) as stream:
                yield stream, inside.filename
    else:
        yield raw, ""


def _only(archive: zipfile.ZipFile, path: str) -> zipfile.ZipInfo:
    files = [file for file in archive.infolist() if not file.is_dir() and not file.filename.startswith("__MACOSX/")]
    if len(files) != 1:
        names = ", ".join(file.filename for file in files[:5]) or "none"
        raise UserError(f"{path}: {len(files)} files ({names}); allowed: one, so unpack it and name the file")
    return files[0]


def _files(path: str, split: str) -> list[str]:
    """The files of a path: itself, or those of the folder that it is."""
    suffix, _ = _suffixes(path)
    if (suffix in FORMATS and not FORMATS[suffix].table) or not _is_folder(path):
        if split != "train":
            raise UserError(
                f"{path}: one file, which has no split {split!r}; `split` is of folders and hf:// data sets"
            )
        return [path]
    files, below = _tables(path), _folders_of_tables(path)
    if below:
        raise UserError(f"{path}: the files of {', '.join(below)} would not be read; name one such folder, or a file")
    if not files:
        raise UserError(f"{path}: a folder without a .parquet or .arrow file; name a file, or a folder of these")
    suffixes = {PurePosixPath(file).suffix for file in files}
    if len(suffixes) > 1:
        raise UserError(f"{path}: a folder of {' and '.join(sorted(suffixes))} files; name one of them")
    return _of_split(path, _saved(path) or files, split)


def _is_folder(path: str) -> bool:
    fs, inner = fsspec.url_to_fs(path)
    return bool(fs.isdir(inner))


def _tables(path: str) -> list[str]:
    """The files of tables right below a folder, in the order of their names."""
    fs, inner = fsspec.url_to_fs(path)
    names = sorted(entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(inner, detail=False))
    tables = [suffix for suffix, chosen in FORMATS.items() if chosen.table]
    kept = [name for name in names if PurePosixPath(name).suffix.lower() in tables and not name.startswith((".", "_"))]
    return [f"{path.rstrip('/')}/{name}" for name in kept]


def _folders_of_tables(path: str) -> list[str]:
    """The folders right below a folder that hold tables of their own."""
    fs, inner = fsspec.url_to_fs(path)
    entries = fs.ls(inner, detail=True)
    names = sorted(entry["name"].rstrip("/").rpartition("/")[2] for entry in entries if entry["type"] == "directory")
    shown = [name for name in names if not name.startswith((".", "_"))]
    return [f"{path.rstrip('/')}/{name}" for name in shown if _tables(f"{path.rstrip('/')}/{name}")]


def _saved(path: str) -> list[str]:
    """The files of a data set that `datasets` saved in a folder, beside which it may keep caches; empty: it is none."""
    fs, inner = fsspec.url_to_fs(path)
    state = f"{inner.rstrip('/')}/state.json"
    if not fs.exists(state):
        return []
    try:
        listed = [PurePosixPath(item["filename"]).name for item in json.loads(fs.cat_file(state))["_data_files"]]
    except (KeyError, TypeError, ValueError):
        return []
    return [f"{path.rstrip('/')}/{name}" for name in listed]


def _of_split(path: str, files: list[str], split: str) -> list[str]:
    """The files of the split, where their names say which they are of."""
    named = {file: _split_of(PurePosixPath(file).name) for file in files}
    found = sorted({name for name in named.values() if name})
    if not found and split == "train":
        return files
    kept = [file for file, name in named.items() if name == _SPLIT_OF.get(split, split)]
    if not kept or None in named.values():
        rest = ", ".join(PurePosixPath(file).name for file, name in named.items() if name is None)
        why = f"no telling the split of {rest}" if rest else f"no file of split {split}"
        raise UserError(f"{path}: {why}; files are there of {', '.join(found) or 'none'} (`split` chooses)")
    return kept


def _split_of(name: str) -> str | None:
    """The split that a file's name tells: by the last such word."""
    words = _SPLIT_NAME.findall(name)
    return _SPLIT_OF[words[-1].lower()] if words else None


def _near(path: str) -> str:
    """` (did you mean ...?)`, from the names in the same folder."""
    try:
        fs, inner = fsspec.url_to_fs(path)
        folder, _, name = inner.rpartition("/")
        names = [entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(folder, detail=False)]
    except (OSError, ValueError):
        return ""
    near = difflib.get_close_matches(name, names, n=3)
    return f" (did you mean {', '.join(near)}?)" if near else ""
