"""Files of rows wherever they are: any fsspec URL, compressed or not, a folder of tables, a data set of the hub."""

import difflib
import gzip
import io
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
from triptych.errors import UserError

if TYPE_CHECKING:
    from triptych.recipe.data import Origin

COMPRESSED = (".gz", ".zst", ".zip")
"""Suffixes of compressed files, behind the suffix of what is in them; a .zip holds one file, which says it itself."""
_HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)")
_SPLITS = ("train", "test", "validation", "valid", "val", "dev", "eval")
_SPLIT_NAME = re.compile(rf"({'|'.join(_SPLITS)})(?![a-z])", re.IGNORECASE)
_UNREADABLE = (OSError, EOFError, ImportError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)
_BLOCK = 1 << 20


def records(origin: "Origin") -> Numbered:
    """The numbered records of an origin. UserError: it cannot be read."""
    path = origin.file
    if path.startswith("hf://"):
        yield from _hub(origin)
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
            return _count_lines(files[0]) - (files[0].suffix != ".jsonl")
    except (*_UNREADABLE, UserError):
        pass
    return None


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(_BLOCK), b""))


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
    if suffix in FORMATS and not FORMATS[suffix].table:
        return [path]
    fs, inner = fsspec.url_to_fs(path)
    if not fs.isdir(inner):
        return [path]
    files = _tables(path)
    if not files:
        raise UserError(f"{path}: a folder without a .parquet or .arrow file; name a file, or a folder of these")
    suffixes = {PurePosixPath(file).suffix for file in files}
    if len(suffixes) > 1:
        raise UserError(f"{path}: a folder of {' and '.join(sorted(suffixes))} files; name one of them")
    return _of_split(path, files, split)


def _tables(path: str) -> list[str]:
    """The files of tables right below a folder, in the order of their names."""
    fs, inner = fsspec.url_to_fs(path)
    names = sorted(entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(inner, detail=False))
    tables = [suffix for suffix, chosen in FORMATS.items() if chosen.table]
    kept = [name for name in names if PurePosixPath(name).suffix.lower() in tables and not name.startswith((".", "_"))]
    return [f"{path.rstrip('/')}/{name}" for name in kept]


def _of_split(path: str, files: list[str], split: str) -> list[str]:
    """The files of the split, where their names say which they are of."""
    named = {file: _SPLIT_NAME.match(PurePosixPath(file).name) for file in files}
    found = sorted({match[1] for match in named.values() if match})
    if not found:
        return files
    kept = [file for file, match in named.items() if match and match[1] == split]
    if not kept or None in named.values():
        rest = ", ".join(PurePosixPath(file).name for file, match in named.items() if match is None)
        why = f"no telling the split of {rest}" if rest else f"no file of split {split}"
        raise UserError(f"{path}: {why}; files are there of {', '.join(found)} (`split` chooses)")
    return kept


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


def _hub(origin: "Origin") -> Numbered:
    match = _HUB.fullmatch(origin.file)
    if not match:
        raise UserError(f"{origin.file}: a data set of the Hugging Face hub is written hf://owner/name")
    import datasets

    try:
        found = datasets.load_dataset(
            match[1],
            origin.config,
            split=origin.split,
            revision=origin.revision,
            streaming="[" not in origin.split,  # a slice is cut from the whole split
        )
        yield from enumerate(found, start=1)
    except (OSError, ValueError, RuntimeError, TypeError, datasets.exceptions.DatasetsError) as error:
        raise UserError(f"{origin.file} (split {origin.split}): cannot be read: {error}") from error
