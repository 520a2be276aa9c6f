"""Folders that are either whole or not there, on a local disk or in an object store.

A folder is committed when it holds `manifest.json`: its files, their sizes and sha256. The manifest is written last, so
a reader that ignores folders without one never sees half of anything. Locally the whole folder is moreover renamed into
place at once; object stores have no rename.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from triptych.cache import cache_dir
from triptych.errors import RunError, UserError
from triptych.write_errors import write_errors

MANIFEST = "manifest.json"


class AlreadyCommittedError(UserError):
    """The target holds a committed folder, and those never change."""


class FileEntry(BaseModel):
    """One file of a committed folder: its size in bytes and its sha256 in hex."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    size: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Manifest(BaseModel):
    """Content of a committed folder: relative POSIX path -> entry. `digest` identifies the content."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    format: Literal[1] = 1
    files: dict[str, FileEntry]
    digest: str

    @model_validator(mode="after")
    def _sound(self) -> "Manifest":
        for name in self.files:
            parts = PurePosixPath(name).parts
            if not parts or name.startswith("/") or "\0" in name or ".." in parts or str(PurePosixPath(name)) != name:
                raise ValueError(f"unsafe file name {name!r}")
        if self.digest != _entries_digest(self.files):
            raise ValueError("the digest does not match the entries")
        return self


def digest_of(obj: Any) -> str:
    """sha256 (hex) of the canonical JSON of `obj`: sorted keys, no spaces, no NaN."""
    text = json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def join(url: str, *names: str) -> str:
    """`url/name/...` with every name checked: a name never climbs out of its folder."""
    for name in names:
        if not name or name.startswith(".") or not name.isprintable() or set(name) & set("/\\") or len(name) > 255:
            raise UserError(
                f"{name!r} cannot name a file or folder: 1 to 255 printable characters, no slash, no leading dot"
            )
    tail = "/".join(names)
    return url + tail if url.endswith("://") else f"{url.rstrip('/')}/{tail}"


@contextmanager
def committed(url: str) -> Iterator[Path]:
    """Yield an empty local staging folder; at a clean exit it appears at `url` with its manifest, or else not at all.

    A committed target is refused (AlreadyCommittedError); an uncommitted leftover there is replaced. A full disk or a
    place that cannot be written becomes a UserError that names the place.
    """
    fs, path = _open(url)
    with write_errors(url):
        if _exists(fs, f"{path}/{MANIFEST}"):
            raise AlreadyCommittedError(f"{url} is committed already, and a committed folder never changes")
        local = isinstance(fs, LocalFileSystem)
        staging = _local_staging(Path(path)) if local else Path(tempfile.mkdtemp(prefix="triptych-"))
        try:
            yield staging
            manifest = _scan(staging, sync=local)
            if local:
                _publish_local(staging, Path(path), manifest)
            else:
                _publish_remote(fs, path, staging, manifest)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def read_manifest(url: str) -> Manifest | None:
    """The manifest of a committed folder; None where nothing is committed. RunError if it is damaged."""
    fs, path = _open(url)
    try:
        data: bytes = fs.cat_file(f"{path}/{MANIFEST}")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as error:
        reason = "; ".join(str(item["msg"]) for item in error.errors()[:2])
        raise RunError(f"{url}/{MANIFEST} is damaged ({reason}): restore the folder from its source") from error


def verify(url: str) -> Manifest:
    """Check every file's size and sha256, and that no file was added. RunError names the bad file."""
    fs, path = _open(url)
    manifest = read_manifest(url)
    if manifest is None:
        raise RunError(f"{url} holds no committed folder: it has no {MANIFEST}")
    present = _local_files(Path(path)) if isinstance(fs, LocalFileSystem) else _remote_files(fs, path)
    for name in sorted(set(present) - set(manifest.files) - {MANIFEST}):
        raise RunError(f"{url}/{name} was added after the folder was committed")
    for name, entry in sorted(manifest.files.items()):
        if name not in present:
            raise RunError(f"{url}/{name} is missing")
        if present[name] != entry.size:
            raise RunError(f"{url}/{name} has {present[name]} bytes, its manifest says {entry.size}")
        with fs.open(f"{path}/{name}", "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                raise RunError(f"{url}/{name} was changed after the folder was committed: its sha256 differs")
    return manifest


def local_copy(url: str, cache: Path | None = None) -> Path:
    """A local folder with the content of `url`: itself when local, else a verified download kept under its digest."""
    fs, path = _open(url)
    if isinstance(fs, LocalFileSystem):
        if not Path(path).is_dir():
            raise UserError(f"{url} is not a folder")
        return Path(path)
    manifest = read_manifest(url)
    if manifest is None:
        raise UserError(f"{url} holds no committed folder: it has no {MANIFEST}")
    target = (cache or cache_dir("artifacts")) / manifest.digest
    if read_manifest(str(target)) is None:
        with suppress(AlreadyCommittedError), committed(str(target)) as staging:
            for name in manifest.files:
                (staging / name).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(f"{path}/{name}", str(staging / name))
            got = _scan(staging, sync=False)
            for name in manifest.files:
                if got.files[name] != manifest.files[name]:
                    raise RunError(f"{url}/{name} does not match its manifest")
    return target


def list_committed(url: str) -> list[str]:
    """Sorted names of the committed folders directly under `url`; empty when there is no such place."""
    fs, path = _open(url)
    found = fs.glob(f"{_escape(path)}/*/{MANIFEST}")
    return sorted(name for item in found if not (name := str(item).rsplit("/", 2)[1]).startswith("."))


def list_files(url: str) -> list[str]:
    """Sorted names of the files directly under `url`, hidden ones aside; empty when there is no such place."""
    return _names(url, "file")


def list_folders(url: str) -> list[str]:
    """Sorted names of the folders directly under `url`, hidden ones aside; empty when there is no such place."""
    return _names(url, "directory")


def absolute(url: str) -> str:
    """A local folder's absolute path; any other URL as it is."""
    fs, path = _open(url)
    return path if isinstance(fs, LocalFileSystem) else url


def write_bytes(url: str, data: bytes) -> None:
    """Write one file, whole or not at all; folders above it are made."""
    fs, path = _open(url)
    with write_errors(url):
        if not isinstance(fs, LocalFileSystem):
            fs.pipe_file(path, data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{target.name[:200]}.{uuid.uuid4().hex[:12]}.tmp"
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def read_bytes(url: str, start: int | None = None, end: int | None = None) -> bytes:
    """The content of one file, or its bytes from `start` up to `end`; UserError when there is none."""
    fs, path = _open(url)
    try:
        data: bytes = fs.cat_file(path, start=start, end=end)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(f"there is no file {url}") from error
    return data


def exists(url: str) -> bool:
    """True if a file or folder is there, committed or not."""
    fs, path = _open(url)
    return _exists(fs, path)


def remove(url: str) -> None:
    """Remove a file or a folder, if it is there. A committed folder vanishes at once, not in parts."""
    fs, path = _open(url)
    with write_errors(url):
        if isinstance(fs, LocalFileSystem):
            _remove_local(Path(path))
        elif _exists(fs, path):
            with suppress(FileNotFoundError):
                fs.rm_file(f"{path}/{MANIFEST}")
            with suppress(FileNotFoundError):
                fs.rm(path, recursive=True)


def _open(url: str) -> tuple[AbstractFileSystem, str]:
    if "\0" in url or not url:
        raise UserError(f"{url!r} is neither a folder nor a URL")
    try:
        fs, path = url_to_fs(url)
    except ImportError as error:
        raise UserError(f"{url}: {error}") from error
    except ValueError as error:
        raise UserError(f"{url!r} is neither a folder nor a URL of a known kind: {error}") from error
    fs.invalidate_cache()  # object stores cache listings, and other processes write
    return fs, str(path).rstrip("/")


def _names(url: str, kind: Literal["file", "directory"]) -> list[str]:
    fs, path = _open(url)
    if not _exists(fs, path):
        return []
    entries = fs.ls(path, detail=True)
    names = (str(entry["name"]).rstrip("/").rsplit("/", 1)[-1] for entry in entries if entry["type"] == kind)
    return sorted(name for name in names if not name.startswith("."))


def _exists(fs: AbstractFileSystem, path: str) -> bool:
    return bool(fs.exists(path))


def _entries_digest(files: dict[str, FileEntry]) -> str:
    return digest_of([[name, entry.size, entry.sha256] for name, entry in sorted(files.items())])


def _scan(folder: Path, *, sync: bool) -> Manifest:
    """The manifest of what lies in `folder` now; `sync` also forces the files to the disk."""
    files: dict[str, FileEntry] = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UserError(f"{name} is neither a file nor a folder: links and devices are not stored")
        if path.is_dir() or name == MANIFEST:
            continue
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if sync:
                os.fsync(file.fileno())
        files[name] = FileEntry(size=path.stat().st_size, sha256=sha256)
    return Manifest(files=files, digest=_entries_digest(files))


def _local_staging(target: Path) -> Path:
    """A hidden folder beside the target, on the same file system; what killed processes left there goes away."""
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file, not a folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    for leftover in target.parent.glob(f".*.staging-{_host()}-*-*"):
        if not _alive(int(leftover.name.rsplit("-", 2)[1])):
            shutil.rmtree(leftover, ignore_errors=True)
    staging = _hidden(target)
    staging.mkdir()
    return staging


def _hidden(target: Path) -> Path:
    """A new name beside `target` that readers skip and that tells which process made it."""
    return target.parent / f".{target.name[:120]}.staging-{_host()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9]", "_", socket.gethostname())[:40]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _publish_local(staging: Path, target: Path, manifest: Manifest) -> None:
    with (staging / MANIFEST).open("wb") as file:
        file.write(manifest.model_dump_json().encode())
        file.flush()
        os.fsync(file.fileno())
    while True:
        try:
            staging.rename(target)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if (target / MANIFEST).exists():
                raise AlreadyCommittedError(f"{target} was committed by another process meanwhile") from error
            _remove_local(target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _publish_remote(fs: AbstractFileSystem, path: str, staging: Path, manifest: Manifest) -> None:
    if fs.exists(path):
        fs.rm(path, recursive=True)
    try:
        for name in manifest.files:
            fs.makedirs(f"{path}/{name}".rsplit("/", 1)[0], exist_ok=True)
            fs.put_file(str(staging / name), f"{path}/{name}")
        fs.pipe_file(f"{path}/{MANIFEST}", manifest.model_dump_json().encode())
    except BaseException:
        with suppress(Exception):  # the first error is the one to report
            fs.rm(path, recursive=True)
        raise


def _local_files(folder: Path) -> dict[str, int]:
    """Relative path -> size in bytes of every file under `folder`; RunError at a symbolic link."""
    found: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            raise RunError(f"{path} became a symbolic link after the folder was committed")
        if path.is_file():
            found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def _remote_files(fs: AbstractFileSystem, path: str) -> dict[str, int]:
    """Relative path -> size in bytes of every object under `path`."""
    found: dict[str, dict[str, Any]] = fs.find(path, detail=True)
    prefix = path.lstrip("/")
    return {name.lstrip("/")[len(prefix) + 1 :]: int(info["size"]) for name, info in found.items()}


def _escape(path: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", path)


def _remove_local(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        gone = _hidden(path)
        path.rename(gone)
        shutil.rmtree(gone)
