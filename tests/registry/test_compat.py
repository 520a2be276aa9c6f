"""The version before and this one on the same registry: `before/` was written by revision e7201dd."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.support import registry_before as before
from triptych.errors import UserError
from triptych.registry import Registry
from triptych.registry.artifacts import read_note
from triptych.registry.facts import UnreadableError, read_facts
from triptych.registry.wire import VersionMessage, from_message, to_message
from triptych.serve.capabilities import Capabilities

WRITTEN = Path(__file__).parent / "before"
KEY = "tk-kept-in-the-tests"
KINDS = {
    "reviews@1": "policy",
    "reviews@2": "policy",
    "scaled@1": "policy",
    "both@1": "policy",
    "reward@1": "reward_model",
    "stars@1": "classifier",
    "whole@1": "model",
    "ppo@1": "policy",
    "odd@1": "experiment",
}
ABOUT: dict[str, Any] = {"base": "b", "base_fingerprint": "f", "lineage": {}, "metrics": {}}


@pytest.fixture
def old(tmp_path: Path) -> str:
    """URL of a registry as the version before left it, with its artifacts."""
    shutil.copytree(WRITTEN / "artifacts", tmp_path / "old/artifacts")
    with sqlite3.connect(tmp_path / "old/registry.db") as connection:
        connection.executescript((WRITTEN / "registry.sql").read_text())
    return f"sqlite:///{tmp_path}/old/registry.db"


def test_a_registry_of_the_version_before_is_read(old: str) -> None:
    registry = Registry(old)
    assert {ref: registry.get(ref).kind for ref in KINDS} == KINDS
    assert [adapter.aliases for adapter in registry.adapters() if adapter.name == "reviews"] == [
        {"canary": 1, "default": 2}
    ]
    assert [one.ref for one in registry.ancestors("ppo")] == ["reviews@1", "reward@1"]
    assert registry.get("reviews@1").lineage == {"recipe": "r1", "parents": []}
    assert registry.fetch("reviews@1").is_dir()
    key = registry.check_key(KEY)
    assert key is not None
    assert (key.label, key.admin) == ("operator", True)
    assert registry.calibrations() == [{"stage": "sft", "actual": 1}]
    assert registry.rollback("reviews").version == 1


def test_facts_that_the_version_before_did_not_store_are_read_from_the_artifact(old: str, tmp_path: Path) -> None:
    registry = Registry(old)
    assert registry.facts("reviews").config == registry.facts("reviews@2").config
    assert registry.facts("reviews@1").rank == 4
    assert registry.facts("scaled").methods == ("ia3",)
    assert registry.facts("both").methods == ("lora", "bitfit")
    assert registry.facts("whole").shapes == {"model.safetensors": {"w": (2, 2)}}
    assert registry.facts("reward").has_head
    shutil.rmtree(tmp_path / "old/artifacts/reviews")
    with pytest.raises(UnreadableError, match=r"its facts cannot be read \(it holds no committed folder"):
        registry.facts("reviews")


@pytest.mark.parametrize("damage", [b"", b"\xff" * 8, b"\x02\0\0\0\0\0\0\0[]", b'\x09\0\0\0\0\0\0\0{"a": 1}'])
def test_a_damaged_artifact_has_no_facts(old: str, damage: bytes) -> None:
    registry = Registry(old)
    Path(registry.get("reviews@1").url, "adapter_model.safetensors").write_bytes(damage)
    with pytest.raises(UnreadableError, match="its facts cannot be read"):
        registry.facts("reviews@1")


@pytest.mark.parametrize("ref", [ref for ref, kind in KINDS.items() if kind in ("policy", "classifier", "model")])
def test_today_s_verdict_on_old_rows_is_what_was_recorded(old: str, ref: str) -> None:
    registry = Registry(old)
    version = registry.get(ref)
    assert Capabilities().why_not(version.kind, registry.facts(ref)) == version.recorded_why_not


def test_an_engine_that_serves_more_finds_old_versions_servable(old: str, lora: Path, write_lora: Any) -> None:
    registry = Registry(old)
    wide = write_lora(lora.parent / "wide", r=128)
    version = registry.register("wide", wide, kind="policy", **ABOUT)
    assert "128" in str(version.recorded_why_not)
    facts = registry.facts("wide")
    assert (Capabilities(64).why_not("policy", facts), Capabilities(128).why_not("policy", facts)) == (
        version.recorded_why_not,
        None,
    )


def test_facts_of_the_registry_are_those_of_the_files(old: str) -> None:
    registry = Registry(old)
    for ref, kind in KINDS.items():
        found = registry.get(ref)
        if kind != "experiment":
            again = registry.register(f"again-{found.name}", found.url, kind=kind, **ABOUT)
            assert registry.facts(again.ref) == read_facts(found.url) == registry.facts(ref)


def test_the_version_before_goes_on_reading_and_writing(
    old: str, lora: Path, write_reward: Callable[[Path], Path], write_lora: Callable[..., Path]
) -> None:
    was = {ref: before.Registry(old).versions(ref.partition("@")[0]) for ref in KINDS}
    registry = Registry(old)
    process = before.Registry(old)
    assert {ref: process.versions(ref.partition("@")[0]) for ref in KINDS} == was

    registry.register("reviews", lora, kind="policy", **ABOUT)
    registry.register("reward", write_reward(lora.parent / "reward"), kind="reward_model", **ABOUT)
    registry.register("reviews", write_lora(lora.parent / "dora", use_dora=True), kind="policy", **ABOUT)
    assert (process.versions("reviews")[2].kind, process.versions("reviews")[2].servable) == ("lora", True)
    assert process.latest("reviews").why_not == was["reviews@2"][1].why_not
    assert (process.latest("reward").kind, process.latest("reward").why_not) == ("reward", was["reward@1"][0].why_not)

    for name, kind in (
        ("reviews", "policy"),
        ("reward", "reward_model"),
        ("stars", "classifier"),
        ("odd", "experiment"),
    ):
        made = process.register(process.latest(name), why_not=None)
        assert registry.get(f"{name}@{made.version}").kind == kind
        assert registry.facts(f"{name}@{made.version}") == registry.facts(f"{name}@{made.version - 1}")
    process.remove("reviews", 3)
    assert [version.version for version in registry.versions("reviews")] == [1, 2, 4, 5]
    assert registry.register("reviews", lora, kind="policy", **ABOUT).version == 6


def test_a_registry_that_this_version_made_is_open_to_the_version_before(
    registry: Registry, url: str, lora: Path
) -> None:
    registry.register("reviews", lora, kind="policy", **ABOUT)
    process = before.Registry(url)
    process.register(process.latest("reviews"), why_not="it uses DoRA")
    assert registry.get("reviews@2").kind == "policy"
    assert registry.facts("reviews@2") == registry.facts("reviews@1")


def test_columns_are_added_once_whoever_opens_it_first(old: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: Registry(old).get("reviews@1").kind, range(16)))
    assert found == ["policy"] * 16
    with sqlite3.connect(old.removeprefix("sqlite:///")) as connection:
        numbers = dict(connection.execute("SELECT key, value FROM meta"))
    assert numbers == {"schema_version": "3", "additions": "1"}


def test_what_later_code_adds_is_left_alone(old: str) -> None:
    Registry(old)
    with sqlite3.connect(old.removeprefix("sqlite:///")) as connection:
        connection.execute("UPDATE meta SET value = '7' WHERE key = 'additions'")
        connection.execute("""UPDATE versions SET facts = '{"other": 1}' WHERE name = 'reviews'""")
    assert Registry(old).facts("reviews@1").rank == 4
    with sqlite3.connect(old.removeprefix("sqlite:///")) as connection:
        assert dict(connection.execute("SELECT key, value FROM meta"))["additions"] == "7"


def test_a_folder_of_the_version_before_is_registered_by_its_own_word(registry: Registry, lora: Path) -> None:
    (lora / "triptych.json").write_text(json.dumps({"kind": "lora", "base": "b", "base_fingerprint": "f"}))
    assert read_note(str(lora))["kind"] == "lora"
    assert registry.register("reviews", lora, kind="policy", **ABOUT).kind == "policy"
    with pytest.raises(UserError, match=r"kind 'lora'; allowed: policy, reward_model, classifier, model, dataset"):
        registry.register("reviews", lora, kind="lora", **ABOUT)


def test_versions_travel_between_this_version_and_the_one_before(old: str) -> None:
    version = Registry(old).get("reward")
    sent = TypeAdapter(VersionMessage).dump_json(to_message(version))
    there = TypeAdapter(before.AdapterVersion).validate_json(sent)
    assert (there.kind, there.servable, there.why_not) == ("reward", False, version.recorded_why_not)
    answered = TypeAdapter(before.AdapterVersion).dump_json(there)
    assert from_message(TypeAdapter(VersionMessage).validate_json(answered)) == version
