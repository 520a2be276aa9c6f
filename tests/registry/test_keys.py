"""API keys: shown once, hashed, revoked everywhere at once."""

import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from triptych.errors import UserError
from triptych.registry import Registry
from triptych.registry.keys import make_key


def test_a_key_is_valid_until_it_is_revoked(registry: Registry) -> None:
    key, other = registry.create_key("mine"), registry.create_key("other")
    found = registry.check_key(key)
    assert found is not None
    assert (found.label, found.revoked_at) == ("mine", None)

    registry.revoke_key(found.id)
    assert registry.check_key(key) is None
    assert registry.check_key(other) is not None
    known = registry.keys()
    revoked = {one.label: one.revoked_at for one in known}
    assert revoked["mine"] is not None
    assert revoked["other"] is None
    registry.revoke_key(found.id)
    assert registry.keys() == known


def test_keys_are_long_and_never_the_same(registry: Registry) -> None:
    keys = {registry.create_key("x") for _ in range(50)}
    assert len(keys) == 50
    assert all(key.startswith("tk-") and len(key) == 46 for key in keys)


def test_neither_the_key_nor_a_part_of_it_is_stored(registry: Registry, tmp_path: Path) -> None:
    key = registry.create_key("mine")
    registry.check_key(key)
    stored = b"".join(path.read_bytes() for path in (tmp_path / "runs").iterdir())
    assert b"mine" in stored
    assert key.encode() not in stored
    assert key[3:15].encode() not in stored
    assert key not in repr(registry.keys())


@pytest.mark.parametrize("wrong", ["", "tk-", "tk-" + "A" * 43, "x" * 100_000, "ä\ud800", "' OR 1=1 --", "tk-\0"])
def test_a_wrong_key_is_refused(registry: Registry, wrong: str) -> None:
    registry.create_key("mine")
    assert registry.check_key(wrong) is None


def test_what_is_nearly_the_key_is_refused(registry: Registry) -> None:
    key = registry.create_key("mine")
    for wrong in (key[:-1], key + "A", key.swapcase(), key.removeprefix("tk-"), f" {key}", key[:3] + key[:2:-1]):
        assert registry.check_key(wrong) is None


def test_the_public_id_and_the_stored_hash_are_no_keys(registry: Registry, tmp_path: Path) -> None:
    registry.create_key("mine")
    with sqlite3.connect(tmp_path / "runs/registry.db") as connection:
        (digest,) = connection.execute("SELECT sha256 FROM keys").fetchone()
    assert registry.check_key(digest) is None
    assert registry.check_key(registry.keys()[0].id) is None


def test_a_hash_that_only_begins_alike_is_refused(registry: Registry, tmp_path: Path) -> None:
    key = registry.create_key("mine")
    with sqlite3.connect(tmp_path / "runs/registry.db") as connection:
        connection.execute("UPDATE keys SET sha256 = substr(sha256, 1, 12) || substr(sha256, 14) || '0'")
    assert registry.check_key(key) is None


def test_last_used_is_coarse(registry: Registry, tmp_path: Path) -> None:
    key = registry.create_key("mine")
    assert registry.keys()[0].last_used is None
    before = datetime.now(UTC)
    registry.check_key(key)
    first = registry.keys()[0].last_used
    assert first is not None
    assert before <= first <= datetime.now(UTC)
    registry.check_key(key)
    assert registry.keys()[0].last_used == first

    with sqlite3.connect(tmp_path / "runs/registry.db") as connection:
        connection.execute("UPDATE keys SET last_used = ?", ((first - timedelta(hours=1)).isoformat(" ")[:26],))
    registry.check_key(key)
    last = registry.keys()[0].last_used
    assert last is not None
    assert last >= first


def test_a_revoked_key_is_no_longer_used(registry: Registry) -> None:
    key = registry.create_key("mine")
    registry.revoke_key(registry.keys()[0].id)
    registry.check_key(key)
    assert registry.keys()[0].last_used is None


def test_a_check_of_a_key_in_use_is_one_lookup_by_primary_key(registry: Registry) -> None:
    keys = [registry.create_key(str(number)) for number in range(20)]
    assert all(registry.check_key(key) for key in keys)  # notes their first use
    statements: list[str] = []
    note = lambda *event: statements.append(event[2])  # noqa: E731
    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert all(registry.check_key(key) for key in keys)
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    asked = [one for one in statements if one != "BEGIN"]
    assert len(asked) == len(keys)
    assert all(one.endswith("WHERE keys.id = ?") for one in asked)


def test_a_registry_that_takes_no_writes_still_lets_its_users_in(registry: Registry, tmp_path: Path) -> None:
    key = registry.create_key("mine")
    with sqlite3.connect(tmp_path / "runs/registry.db") as connection:
        connection.execute("CREATE TRIGGER full BEFORE UPDATE ON keys BEGIN SELECT RAISE(ABORT, 'disk is full'); END")
    assert registry.check_key(key) is not None


@pytest.mark.slow
def test_another_process_sees_a_revocation_at_once(registry: Registry, url: str) -> None:
    script = (
        "import sys; from triptych.registry import Registry; registry = Registry(sys.argv[1])\n"
        "for line in sys.stdin: print(registry.check_key(line.strip()) is not None, flush=True)"
    )
    key = registry.create_key("mine")
    command = [sys.executable, "-c", script, url]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        print(key, file=other.stdin, flush=True)
        assert other.stdout.readline() == "True\n"
        registry.revoke_key(registry.keys()[0].id)
        print(key, file=other.stdin, flush=True)
        assert other.stdout.readline() == "False\n"
        other.stdin.close()


@pytest.mark.parametrize("label", ["", "  ", "a\nb", "\x1b[2J", "x" * 101])
def test_a_label_says_whose_key_it_is(registry: Registry, label: str) -> None:
    with pytest.raises(UserError, match="1 to 100 printable characters"):
        registry.create_key(label)


def test_an_unknown_key_cannot_be_revoked(registry: Registry) -> None:
    with pytest.raises(UserError, match="no key with id 'nobody'"):
        registry.revoke_key("nobody")


def test_a_key_may_administer_only_if_it_was_made_so(registry: Registry) -> None:
    client, operator = registry.create_key("client"), registry.create_key("operator", admin=True)
    found = [registry.check_key(key) for key in (client, operator)]
    assert [key is not None and key.admin for key in found] == [False, True]


def test_a_key_made_elsewhere_is_known_by_its_sha256(registry: Registry) -> None:
    key, sha256 = make_key()
    assert registry.check_key(key) is None
    registry.add_key(sha256, "laptop")
    found = registry.check_key(key)
    assert found is not None
    assert found.label == "laptop"
    with pytest.raises(UserError, match=f"a key with id '{sha256[:12]}' already"):
        registry.add_key(sha256, "again")
    for wrong in (key, sha256.upper(), sha256[:-1], ""):
        with pytest.raises(UserError, match="64 hexadecimal digits"):
            registry.add_key(wrong, "x")


def test_keys_of_an_older_registry_stay_and_administer_nothing(registry: Registry, url: str, tmp_path: Path) -> None:
    key = registry.create_key("old")
    with sqlite3.connect(tmp_path / "runs/registry.db") as connection:
        connection.execute("ALTER TABLE keys DROP COLUMN admin")
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema_version'")
    with ThreadPoolExecutor(4) as pool:
        found = [opened.check_key(key) for opened in pool.map(Registry, [url] * 4)]
    assert [one is not None and (one.label, one.admin) for one in found] == [("old", False)] * 4
    assert Registry(url, create=False).keys()[0].label == "old"


def test_a_registry_whose_file_is_moved_away_for_a_while_loses_nothing(registry: Registry, tmp_path: Path) -> None:
    """A look-up meanwhile makes no empty file in its place, whose log would be taken for the log of the latest keys."""
    file, key = tmp_path / "runs/registry.db", registry.create_key("mine")
    with sqlite3.connect(file) as reader:  # keeps the log from being written into the file
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM keys").fetchone()
        latest = registry.create_key("latest")
        file.rename(file.with_name("aside.db"))
        registry._database._engine.dispose()  # as a process that starts, or opens another connection
        for _ in range(3):
            with pytest.raises(UserError, match="cannot be opened: check that the file is there"):
                registry.check_key(latest)
        assert not file.exists()
        file.with_name("aside.db").rename(file)
    assert registry.check_key(key) is not None
    assert registry.check_key(latest) is not None
