"""Folders are whole or absent, whatever happens while they are made."""

import errno
import itertools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from triptych import storage
from triptych.errors import RunError, UserError

_NUMBERS = itertools.count()


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A bucket of S3's own protocol, on a server of ours; skipped where s3fs or moto is not installed."""
    s3fs = pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem().mkdir("runs")
        yield "s3://runs"
    server.stop()


@pytest.fixture(params=["local", "memory", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder on the disk, and one in each of two object stores."""
    if request.param == "local":
        return str(tmp_path / "place")
    root = "memory:/" if request.param == "memory" else request.getfixturevalue("bucket")
    return f"{root}/place-{next(_NUMBERS)}"


def fill(url: str, **files: str) -> None:
    with storage.committed(url) as staging:
        for name, text in files.items():
            path = staging / name.replace("__", "/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


@pytest.mark.slow
def test_what_was_committed_comes_back_whole(place: str, tmp_path: Path) -> None:
    url = storage.join(place, "a")
    fill(url, weights="12345", deep__er__note="hello")

    manifest = storage.verify(url)
    assert {name: entry.size for name, entry in manifest.files.items()} == {"weights": 5, "deep/er/note": 5}
    assert manifest == storage.read_manifest(url)
    folder = storage.local_copy(url, tmp_path / "cache")
    assert (folder / "deep/er/note").read_text() == "hello"
    assert storage.list_committed(place) == ["a"]


def test_the_digest_is_that_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    for url in (str(tmp_path / "one"), f"memory://digest-{next(_NUMBERS)}"):
        fill(url, a="1", b="2")
    fill(str(tmp_path / "other"), a="1", b="3")
    digests = [storage.verify(str(tmp_path / "one")).digest, storage.verify(url).digest]
    assert digests[0] == digests[1] != storage.verify(str(tmp_path / "other")).digest


def test_a_local_folder_is_used_where_it_lies(tmp_path: Path) -> None:
    fill(str(tmp_path / "a"), x="1")
    assert storage.local_copy(str(tmp_path / "a")) == tmp_path / "a"
    with pytest.raises(UserError, match="nowhere is not a folder"):
        storage.local_copy(str(tmp_path / "nowhere"))


def test_a_second_commit_is_refused_and_changes_nothing(place: str) -> None:
    url = storage.join(place, "a")
    fill(url, x="1")
    with pytest.raises(storage.AlreadyCommittedError, match="is committed already"):
        fill(url, x="2")
    assert storage.read_bytes(storage.join(url, "x")) == b"1"


def test_an_error_in_the_middle_leaves_nothing(place: str, tmp_path: Path) -> None:
    url = storage.join(place, "a")
    with pytest.raises(UnicodeEncodeError), storage.committed(url) as staging:
        [(staging / "x").write_text(text, encoding="ascii") for text in ("half", "é")]
    assert storage.list_committed(place) == []
    assert not storage.exists(url)
    assert not list((tmp_path / "place").glob("**/*"))
    assert not staging.exists()


def test_an_upload_that_breaks_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    put, url = MemoryFileSystem.put_file, f"memory://breaks-{next(_NUMBERS)}/a"

    def broken(self: MemoryFileSystem, source: str, target: str, **options: object) -> None:
        if target.endswith("/y"):
            raise ConnectionError("the network went away")
        put(self, source, target, **options)

    monkeypatch.setattr(MemoryFileSystem, "put_file", broken)
    with pytest.raises(ConnectionError):
        fill(url, x="1", y="2")
    assert not storage.exists(url)
    monkeypatch.undo()
    fill(url, x="1", y="2")
    assert set(storage.verify(url).files) == {"x", "y"}


def test_an_uncommitted_leftover_is_replaced(place: str) -> None:
    url = storage.join(place, "a")
    storage.write_bytes(storage.join(url, "old"), b"half of an upload")
    assert storage.read_manifest(url) is None
    assert storage.list_committed(place) == []
    fill(url, x="1")
    assert set(storage.verify(url).files) == {"x"}


def test_a_leftover_survives_a_commit_that_fails(tmp_path: Path) -> None:
    storage.write_bytes(str(tmp_path / "a" / "old"), b"mine")
    with pytest.raises(ZeroDivisionError), storage.committed(str(tmp_path / "a")):
        raise ZeroDivisionError
    assert (tmp_path / "a" / "old").read_bytes() == b"mine"


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_kill_9_in_the_middle_leaves_nothing_visible_and_the_next_commit_sweeps(tmp_path: Path, moment: str) -> None:
    script = f"""
import sys, time
from pathlib import Path
from triptych import storage
if {moment!r} == "renaming":
    Path.rename = lambda self, target: (print("now", flush=True), time.sleep(60))
with storage.committed({str(tmp_path / "a")!r}) as staging:
    (staging / "x").write_text("half")
    if {moment!r} == "writing":
        print("now", flush=True)
        time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert storage.list_committed(str(tmp_path)) == []
    assert storage.read_manifest(str(tmp_path / "a")) is None

    fill(str(tmp_path / "a"), x="whole")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a" / "x").read_text() == "whole"


def test_staging_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    with storage.committed(str(tmp_path / "a")) as staging:
        (staging / "x").write_text("1")
        fill(str(tmp_path / "b"), y="2")
    assert storage.list_committed(str(tmp_path)) == ["a", "b"]


def test_of_many_that_commit_the_same_folder_one_wins(tmp_path: Path) -> None:
    def attempt(number: int) -> int | None:
        try:
            fill(str(tmp_path / "a"), x=str(number), y=str(number))
        except storage.AlreadyCommittedError:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(attempt, range(8)) if number is not None]
    assert len(winners) == 1
    storage.verify(str(tmp_path / "a"))
    assert (tmp_path / "a/x").read_text() == (tmp_path / "a/y").read_text() == str(winners[0])
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda url: storage.write_bytes(storage.join(url, "x"), b"54321"), "/x was changed after"),
        (lambda url: storage.write_bytes(storage.join(url, "x"), b"123456"), "/x has 6 bytes, its manifest says 5"),
        (lambda url: storage.remove(storage.join(url, "x")), "/x is missing"),
        (lambda url: storage.write_bytes(storage.join(url, "new.bin"), b""), "/new.bin was added after"),
        (lambda url: storage.remove(storage.join(url, "manifest.json")), "holds no committed folder"),
    ],
)
def test_verify_names_the_tampered_file(place: str, damage: object, message: str) -> None:
    url = storage.join(place, "a")
    fill(url, x="12345", y="1")
    assert callable(damage)
    damage(url)
    with pytest.raises(RunError, match=message):
        storage.verify(url)


def test_verify_finds_a_link_in_place_of_a_file(tmp_path: Path) -> None:
    fill(str(tmp_path / "a"), x="1")
    (tmp_path / "same").write_text("1")
    (tmp_path / "a/x").unlink()
    (tmp_path / "a/x").symlink_to(tmp_path / "same")
    with pytest.raises(RunError, match="symbolic link"):
        storage.verify(str(tmp_path / "a"))


@pytest.mark.parametrize("name", ["../../evil", "/etc/evil", "a/../../evil", "", "a//b"])
def test_a_manifest_never_names_a_file_outside(tmp_path: Path, name: str) -> None:
    import json

    entry = {"size": 1, "sha256": "0" * 64}
    digest = storage.digest_of([[name, 1, "0" * 64]])
    url = f"memory://evil-{next(_NUMBERS)}"
    text = json.dumps({"format": 1, "files": {name: entry}, "digest": digest})
    storage.write_bytes(storage.join(url, "manifest.json"), text.encode())
    with pytest.raises(RunError, match="unsafe file name"):
        storage.local_copy(url, tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "files": {}, "digest": ""}'])
def test_a_damaged_manifest_is_named(place: str, text: str) -> None:
    storage.write_bytes(storage.join(place, "manifest.json"), text.encode())
    with pytest.raises(RunError, match=r"manifest.json is damaged"):
        storage.read_manifest(place)


def test_a_download_that_was_changed_on_its_way_is_refused(tmp_path: Path) -> None:
    url = f"memory://way-{next(_NUMBERS)}"
    fill(url, x="1")
    storage.write_bytes(storage.join(url, "x"), b"2")
    with pytest.raises(RunError, match="/x does not match its manifest"):
        storage.local_copy(url, tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def test_a_download_is_kept(tmp_path: Path) -> None:
    url = f"memory://kept-{next(_NUMBERS)}"
    fill(url, x="1")
    first = storage.local_copy(url, tmp_path)
    storage.remove(storage.join(url, "x"))
    assert storage.local_copy(url, tmp_path) == first
    assert (first / "x").read_text() == "1"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "/a", "a\\b", "a\0b", ".hidden", "a\nb", "x" * 256])
def test_a_name_never_climbs_out(name: str) -> None:
    with pytest.raises(UserError, match="cannot name a file"):
        storage.join("/data", "fine", name)


@pytest.mark.parametrize(
    ("url", "joined"),
    [
        ("/data", "/data/a/b"),
        ("runs/", "runs/a/b"),
        ("s3://bucket/x", "s3://bucket/x/a/b"),
        ("memory://", "memory://a/b"),
    ],
)
def test_join(url: str, joined: str) -> None:
    assert storage.join(url, "a", "b") == joined


def test_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.absolute("runs/") == str(tmp_path / "runs")
    assert storage.absolute("memory://x") == "memory://x"


@pytest.mark.parametrize("url", ["", "a\0b", "nosuchkind://x"])
def test_what_is_no_place_is_refused(url: str) -> None:
    with pytest.raises(UserError, match="neither a folder nor a URL"):
        storage.exists(url)


def test_single_files(place: str) -> None:
    url = storage.join(place, "deep", "x")
    assert not storage.exists(url)
    with pytest.raises(UserError, match="there is no file"):
        storage.read_bytes(url)
    storage.write_bytes(url, b"1")
    storage.write_bytes(url, b"2")
    assert storage.read_bytes(url) == b"2"
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_files_are_listed_without_folders_and_hidden_ones(place: str) -> None:
    assert storage.list_files(place) == []
    for name in ("b", "a", "deep/c", ".hidden"):
        storage.write_bytes(f"{place}/{name}", b"")
    assert storage.list_files(place) == ["a", "b"]


def test_remove_takes_the_whole_folder(place: str) -> None:
    fill(storage.join(place, "a"), x="1", deep__y="2")
    fill(storage.join(place, "b"), x="1")
    storage.remove(storage.join(place, "a"))
    assert storage.list_committed(place) == ["b"]
    assert not storage.exists(storage.join(place, "a"))


def test_a_link_is_not_stored(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="links and devices are not stored"),
        storage.committed(str(tmp_path / "a")) as s,
    ):
        (s / "passwd").symlink_to("/etc/passwd")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("may not mount a file system here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_is_named_and_nothing_is_left(small_disk: Path) -> None:
    fill(str(small_disk / "first"), x="1")
    with pytest.raises(UserError, match=r"cannot write .*/small/second: No space left on device.*free some space"):
        fill(str(small_disk / "second"), x="1" * 300_000)
    assert [path.name for path in small_disk.iterdir()] == ["first"]
    storage.verify(str(small_disk / "first"))
    with pytest.raises(UserError, match="No space left on device"):
        storage.write_bytes(str(small_disk / "file"), b"1" * 300_000)
    assert [path.name for path in small_disk.iterdir()] == ["first"]


def test_a_full_disk_met_inside_a_library_is_named(small_disk: Path) -> None:
    import torch
    from safetensors.torch import save_file

    with (
        pytest.raises(UserError, match=r"/small/a: No space left"),
        storage.committed(str(small_disk / "a")) as staging,
    ):
        save_file({"x": torch.zeros(100_000)}, staging / "x.safetensors")
    assert not list(small_disk.iterdir())


def test_a_file_size_limit_is_named(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(UserError, match="ulimit -f"):
            fill(str(tmp_path / "a"), x="1" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(self: Path, *_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)  # root may write everywhere
    with pytest.raises(UserError, match=rf"cannot write {tmp_path}/a: {os.strerror(number)}.*choose another place"):
        fill(str(tmp_path / "a"), x="1")


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    with pytest.raises(UserError, match="a is a file, not a folder"):
        fill(str(tmp_path / "a"), x="1")


def test_digest_of_is_canonical() -> None:
    assert storage.digest_of({"a": 1, "b": [1.5, "é"]}) == storage.digest_of({"b": [1.5, "é"], "a": 1})
    assert storage.digest_of([1]) != storage.digest_of(["1"])
    with pytest.raises(ValueError, match="JSON"):
        storage.digest_of(float("nan"))
