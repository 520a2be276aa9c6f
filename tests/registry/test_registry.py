"""Versions, aliases, lineage."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from triptych import storage
from triptych.errors import RunError, UserError
from triptych.registry import AdapterVersion, Registry, UnknownAdapter
from triptych.registry.tables import SCHEMA_VERSION

Add = Callable[..., AdapterVersion]
ABOUT: dict[str, Any] = {"kind": "policy", "base": "b", "base_fingerprint": "f", "lineage": {}, "metrics": {}}


def test_a_registered_version_comes_back_as_it_was(registry: Registry, lora: Path, url: str) -> None:
    before = datetime.now(UTC)
    lineage = {"recipe": "r1", "data": {"train": "d1"}, "parents": []}
    made = registry.register(
        "reviews", lora, kind="policy", base="tiny", base_fingerprint="f1", lineage=lineage, metrics={"loss": 1.25}
    )
    assert made.ref == "reviews@1"
    assert before <= made.created_at <= datetime.now(UTC)
    assert (made.kind, made.recorded_why_not) == ("policy", None)
    assert (made.lineage, made.metrics) == (lineage, {"loss": 1.25})
    assert made.sha256 == storage.verify(made.url).digest
    assert Registry(url).get("reviews@1") == made


def test_the_artifact_is_a_copy(registry: Registry, lora: Path, add: Add) -> None:
    version = add()
    shutil.rmtree(lora)
    assert sorted(storage.verify(version.url).files) == ["adapter_config.json", "adapter_model.safetensors"]


def test_a_committed_artifact_keeps_its_digest(registry: Registry, lora: Path, tmp_path: Path) -> None:
    with storage.committed(str(tmp_path / "artifact")) as staging:
        shutil.copytree(lora, staging, dirs_exist_ok=True)
    version = registry.register("reviews", str(tmp_path / "artifact"), **ABOUT)
    assert version.sha256 == storage.verify(str(tmp_path / "artifact")).digest

    (tmp_path / "artifact/adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match=r"adapter_config.json has 2 bytes"):
        registry.register("reviews", str(tmp_path / "artifact"), **ABOUT)
    assert len(registry.versions("reviews")) == 1


def test_artifacts_in_an_object_store(url: str, lora: Path, tmp_path: Path) -> None:
    registry = Registry(url, "memory://adapters")
    version = registry.register("reviews", lora, **ABOUT)
    assert version.url.startswith("memory://adapters/reviews/")
    folder = Registry(url).fetch("reviews", tmp_path / "cache")
    assert (folder / "adapter_config.json").read_bytes() == (lora / "adapter_config.json").read_bytes()
    again = registry.register("again", version.url, **ABOUT)
    assert again.sha256 == version.sha256
    registry.remove("reviews@1")
    assert storage.list_committed("memory://adapters/reviews") == []


def test_registry_and_artifacts_move_together(registry: Registry, add: Add, tmp_path: Path) -> None:
    version = add()
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    moved = Registry(f"sqlite:///{tmp_path}/elsewhere/registry.db").get("reviews")
    assert moved.url != version.url
    assert storage.verify(moved.url).digest == version.sha256


def test_what_a_bare_name_means(registry: Registry, add: Add) -> None:
    add(), add(), add()
    assert registry.get("reviews").version == 3
    registry.alias("reviews", "canary", 2)
    assert registry.get("reviews").version == 3
    assert registry.get("reviews@canary").version == 2
    registry.alias("reviews", "default", 1)
    assert registry.get("reviews").version == 1
    assert registry.get("reviews@3").version == 3
    (adapter,) = registry.adapters()
    assert (adapter.name, adapter.versions, adapter.plain) == ("reviews", (1, 2, 3), 1)
    assert adapter.aliases == {"canary": 2, "default": 1}


@pytest.mark.parametrize(
    ("ref", "message"),
    [
        ("review", "no adapter 'review'; did you mean reviews"),
        ("zzz", "no adapter 'zzz'; there is other, reviews"),
        ("reviews@9", "has no version or alias '9'; it has 1, 2, canary"),
        ("reviews@cannary", "has no version or alias 'cannary'"),
        ("reviews@", "has no version or alias ''"),
        ("reviews@0", "has no version"),
        ("reviews@01", "has no version"),
        ("reviews@-1", "has no version"),
        ("reviews@1@1", "has no version"),
        ("reviews@99999999999999999999", "has no version"),
        ("reviews@²", "has no version"),
        ("../../etc/passwd", "no adapter"),
        ("", "no adapter"),
        ("x" * 10_000, "no adapter"),
        ("reviews'; DROP TABLE versions; --", "no adapter"),
    ],
)
def test_unknown_names_offer_near_ones(registry: Registry, add: Add, ref: str, message: str) -> None:
    add(), add(), add("other")
    registry.alias("reviews", "canary", 1)
    with pytest.raises(UnknownAdapter, match=message) as caught:
        registry.get(ref)
    assert len(str(caught.value)) < 300


def test_the_first_unknown_name_of_an_empty_registry(registry: Registry) -> None:
    assert registry.adapters() == []
    with pytest.raises(UnknownAdapter, match="there is none yet"):
        registry.versions("reviews")


@pytest.mark.parametrize("name", ["", "..", "a/b", "A", "-a", "a-", "a@b", "a b", "a\n", "a\0", "ä", "x" * 65, "a;b"])
def test_names_are_checked(registry: Registry, lora: Path, add: Add, name: str) -> None:
    with pytest.raises(UserError, match=r"adapter name .*lower-case letters"):
        registry.register(name, lora, **ABOUT)
    add()
    with pytest.raises(UserError, match=r"alias .*lower-case letters"):
        registry.alias("reviews", name, 1)


@pytest.mark.parametrize("alias", ["3", "latest"])
def test_an_alias_is_never_taken_for_a_version(registry: Registry, add: Add, alias: str) -> None:
    add()
    with pytest.raises(UserError, match="numbers are versions"):
        registry.alias("reviews", alias, 1)


def test_an_alias_points_at_what_exists(registry: Registry, add: Add) -> None:
    add()
    with pytest.raises(UnknownAdapter):
        registry.alias("reviews", "canary", 2)
    assert registry.adapters()[0].aliases == {}


def test_rollback_takes_moves_back_one_by_one(registry: Registry, add: Add) -> None:
    add(), add(), add()
    for version in (1, 2, 2, 3):
        registry.alias("reviews", "default", version)
    assert registry.rollback("reviews").version == 2
    assert registry.rollback("reviews").version == 1
    with pytest.raises(UserError, match="nothing to roll back to"):
        registry.rollback("reviews")
    assert registry.get("reviews").version == 1


def test_a_dropped_alias_is_gone(registry: Registry, add: Add) -> None:
    add(), add()
    registry.alias("reviews", "default", 1)
    registry.drop_alias("reviews", "default")
    assert registry.get("reviews").version == 2
    with pytest.raises(UnknownAdapter):
        registry.drop_alias("reviews", "default")


def test_lineage_is_walked_both_ways(registry: Registry, add: Add) -> None:
    add("sft"), add("reward")
    registry.alias("sft", "canary", 1)
    add("ppo", parents={"sft@canary": "digest", "reward": "digest"})
    add("ppo2", parents=["ppo@1", "sft@1"])
    assert [one.ref for one in registry.ancestors("ppo2")] == ["ppo@1", "sft@1", "reward@1"]
    assert [one.ref for one in registry.descendants("sft")] == ["ppo@1", "ppo2@1"]
    assert registry.ancestors("sft") == registry.descendants("ppo2") == []


def test_an_unknown_parent_is_refused_and_nothing_is_kept(registry: Registry, add: Add, tmp_path: Path) -> None:
    with pytest.raises(UnknownAdapter):
        add(parents=["nobody@1"])
    assert registry.adapters() == []
    assert not (tmp_path / "runs/artifacts").exists()


@pytest.mark.parametrize("metrics", [{"loss": float("nan")}, {"loss": object()}])
def test_metrics_are_plain_json(registry: Registry, lora: Path, metrics: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="metrics must be plain JSON"):
        registry.register("reviews", lora, **(ABOUT | {"metrics": metrics}))


def test_remove_and_its_number_is_never_used_again(registry: Registry, add: Add) -> None:
    add()
    second = add()
    registry.remove("reviews@2")
    assert not storage.exists(second.url)
    assert [one.version for one in registry.versions("reviews")] == [1]
    assert add().version == 3
    registry.remove("reviews@1"), registry.remove("reviews@3")
    assert registry.adapters() == []
    assert add().version == 4


def test_remove_is_refused_while_something_points_at_it(registry: Registry, add: Add) -> None:
    add(), add(), add("ppo", parents=["reviews@1"])
    registry.alias("reviews", "canary", 2)
    registry.alias("reviews", "canary", 1)
    with pytest.raises(UserError, match="reviews@1 is used by reviews@canary, ppo@1"):
        registry.remove("reviews@1")
    assert registry.fetch("reviews@1").is_dir()

    registry.remove("reviews@1", force=True)
    with pytest.raises(UnknownAdapter):
        registry.get("reviews@canary")
    assert registry.get("ppo").lineage == {"parents": ["reviews@1"]}
    assert registry.ancestors("ppo") == []


def test_a_removed_version_leaves_the_history_of_aliases(registry: Registry, add: Add) -> None:
    add(), add(), add()
    for version in (1, 2, 3):
        registry.alias("reviews", "default", version)
    registry.remove("reviews@2")
    assert registry.rollback("reviews").version == 1


def test_fetch_refuses_an_artifact_that_was_changed(registry: Registry, add: Add) -> None:
    version = add()
    path = Path(version.url, "adapter_model.safetensors")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"adapter_model.safetensors was changed"):
        registry.fetch("reviews")


def test_fetch_refuses_another_artifact_in_its_place(registry: Registry, add: Add, lora: Path) -> None:
    version = add()
    storage.remove(version.url)
    with storage.committed(version.url) as staging:
        (staging / "adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match=r"reviews@1: .* holds another artifact"):
        registry.fetch("reviews")


def test_export_copies_and_refuses_an_existing_target(registry: Registry, add: Add, lora: Path, tmp_path: Path) -> None:
    version = add()
    registry.export("reviews", str(tmp_path / "out"))
    assert storage.verify(str(tmp_path / "out")).digest == version.sha256
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        registry.export("reviews", str(tmp_path / "mine"))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["file"]


def test_a_full_disk_leaves_no_version(registry: Registry, lora: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("shutil.copyfile", full)
    with pytest.raises(UserError, match=r"cannot write .*artifacts/reviews/.*: No space left on device"):
        registry.register("reviews", lora, **ABOUT)
    monkeypatch.undo()
    assert registry.adapters() == []
    assert registry.register("reviews", lora, **ABOUT).version == 1


def test_a_database_error_after_the_copy_leaves_no_files(
    registry: Registry, add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> int:
        raise RunError("the database went away")

    monkeypatch.setattr("triptych.registry.queries.next_version", fail)
    with pytest.raises(RunError):
        add()
    assert not list((tmp_path / "runs/artifacts/reviews").iterdir())


def test_a_registry_from_a_newer_version_is_refused(registry: Registry, url: str, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "runs/registry.db") as connection:
        connection.execute("UPDATE meta SET value = ? WHERE key = 'schema_version'", (str(SCHEMA_VERSION + 1),))
    with pytest.raises(UserError, match=f"schema version {SCHEMA_VERSION + 1}, from a newer Triptych.*upgrade"):
        Registry(url)


def test_a_registry_from_an_older_version_is_brought_up(registry: Registry, add: Add, url: str, tmp_path: Path) -> None:
    add()
    with sqlite3.connect(tmp_path / "runs/registry.db") as connection:
        connection.execute("DROP TABLE calibrations")
        connection.execute("UPDATE meta SET value = '2' WHERE key = 'schema_version'")
    brought_up = Registry(url)
    assert brought_up.get("reviews").version == 1
    for actual in (1, 2):
        brought_up.add_calibration({"actual": actual})
    assert Registry(url).calibrations() == [{"actual": 2}, {"actual": 1}]
    with pytest.raises(UserError, match="calibration must be plain JSON"):
        brought_up.add_calibration({"actual": float("nan")})


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("mysql://host/x", "sqlite and postgresql are what a registry can live in"),
        ("://", "malformed"),
        ("sqlite://", "needs a file"),
        ("sqlite:///:memory:", "needs a file"),
        ("sqlite:////proc/nowhere/registry.db", "cannot be made"),
        ("postgresql+nosuchdriver://host/x", "no driver for the registry"),
    ],
)
def test_what_is_no_registry_is_refused(url: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Registry(url)


def test_a_file_that_is_no_database_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "notes.db").write_text("These are my notes. " * 100)
    with pytest.raises(UserError, match="it is not a SQLite file"):
        Registry(str(tmp_path / "notes.db"))
    assert (tmp_path / "notes.db").read_text().startswith("These are my notes.")


def test_somebody_elses_database_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "theirs.db") as connection:
        connection.execute("CREATE TABLE invoices (id INTEGER)")
    with pytest.raises(UserError, match=r"not a registry: it has the tables \['invoices'\]"):
        Registry(str(tmp_path / "theirs.db"))


def test_looking_creates_nothing(url: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no registry at"):
        Registry(url, create=False)
    assert not (tmp_path / "runs").exists()


def test_a_server_that_does_not_answer_and_no_password_in_the_message() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(RunError, match="cannot be reached") as caught:
        Registry("postgresql+psycopg://user:secret-word@127.0.0.1:9/x")
    assert "secret-word" not in str(caught.value)


_TEN = """
import sys
from triptych.registry import Registry
print("ready", flush=True)
sys.stdin.readline()
url, artifacts, folder = sys.argv[1:]
registry = Registry(url, artifacts)
about = {"kind": "policy", "base": "b", "base_fingerprint": "f", "lineage": {}, "metrics": {}}
for _ in range(10):
    print(registry.register("reviews", folder, **about).version)
    registry.get("reviews"), registry.adapters()
"""


def _four_processes(url: str, artifacts: Path, lora: Path) -> None:
    command = [sys.executable, "-c", _TEN, url, str(artifacts), str(lora)]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    pipes["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    workers = [subprocess.Popen(command, **pipes) for _ in range(4)]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        print("go", file=worker.stdin, flush=True)
    given = sorted(int(line) for worker in workers for line in worker.communicate(timeout=60)[0].split())
    assert [worker.returncode for worker in workers] == [0] * 4
    assert given == list(range(1, 41))
    assert [one.version for one in Registry(url).versions("reviews")] == given
    assert len(storage.list_committed(str(artifacts / "reviews"))) == 40


@pytest.mark.slow
def test_four_processes_open_at_once_and_number_without_gap(url: str, lora: Path, tmp_path: Path) -> None:
    _four_processes(url, tmp_path / "artifacts", lora)


@pytest.mark.slow
def test_four_processes_on_postgresql(postgres: str, lora: Path, tmp_path: Path) -> None:
    _four_processes(postgres, tmp_path / "artifacts", lora)
    registry = Registry(postgres, str(tmp_path / "artifacts"))
    registry.register("ppo", lora, **(ABOUT | {"lineage": {"parents": ["reviews@7"]}}))
    registry.alias("reviews", "default", 7)
    registry.alias("reviews", "default", 8)
    assert registry.rollback("reviews").version == 7
    with pytest.raises(UserError, match="reviews@7 is used by reviews@default, ppo@1"):
        registry.remove("reviews@7")
    assert registry.check_key(registry.create_key("me"))
    assert registry.fetch("reviews").is_dir()


def test_a_server_says_where_artifacts_go(postgres: str, lora: Path) -> None:
    with pytest.raises(UserError, match="say where artifacts go") as caught:
        Registry(postgres).register("reviews", lora, **ABOUT)
    assert "secret-word" not in str(caught.value)


def test_a_newer_registry_on_postgresql(postgres: str) -> None:
    Registry(postgres)
    with create_engine(postgres).begin() as connection:
        connection.execute(text("UPDATE meta SET value = '99' WHERE key = 'schema_version'"))
    try:
        with pytest.raises(UserError, match="schema version 99"):
            Registry(postgres)
    finally:
        with create_engine(postgres).begin() as connection:
            connection.execute(text(f"UPDATE meta SET value = '{SCHEMA_VERSION}' WHERE key = 'schema_version'"))


@pytest.mark.slow
def test_many_open_at_once(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    for attempt in range(10):
        with ThreadPoolExecutor(8) as pool:
            opened = list(pool.map(Registry, [f"sqlite:///{tmp_path}/{attempt}.db"] * 8))
        assert all(registry.adapters() == [] for registry in opened)


def test_readers_go_on_while_somebody_writes(registry: Registry, add: Add, tmp_path: Path) -> None:
    add()
    with sqlite3.connect(tmp_path / "runs/registry.db") as writer:
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE versions SET base = 'other'")
        assert registry.get("reviews").base == "b"
        writer.rollback()


def test_the_recorded_lineage_is_readable_without_us(registry: Registry, add: Add, tmp_path: Path) -> None:
    add(recipe="r1", parents=[])
    with sqlite3.connect(tmp_path / "runs/registry.db") as connection:
        (lineage,) = connection.execute("SELECT lineage FROM versions").fetchone()
    assert json.loads(lineage) == {"recipe": "r1", "parents": []}
