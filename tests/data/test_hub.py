"""Data sets of the hub, read from a server that speaks its protocol."""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.hub import Hub, hub_server
from triptych.data.hub import commits_of, pinned
from triptych.data.sources import load_rows
from triptych.errors import UserError
from triptych.recipe.data import Source

NAME = "owner/name"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with hub_server() as server:
        for name in ("huggingface_hub.constants.ENDPOINT", "datasets.config.HF_ENDPOINT"):
            monkeypatch.setattr(name, server.url)
        template = "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE"
        monkeypatch.setattr(template, server.url + "/{repo_id}/resolve/{revision}/{filename}")
        for name in ("huggingface_hub.constants.HF_HUB_OFFLINE", "datasets.config.HF_HUB_OFFLINE"):
            monkeypatch.setattr(name, False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server


def _jsonl(*texts: str) -> bytes:
    return "".join(json.dumps({"prompt": text}) + "\n" for text in texts).encode()


def _parquet(columns: dict[str, Any], features: dict[str, Any]) -> bytes:
    table = pa.table(columns).replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    sink = io.BytesIO()
    pa.parquet.write_table(table, sink)
    return sink.getvalue()


def _texts(**fields: Any) -> list[str]:
    return [row.messages[0].content for row in load_rows(Source(path=f"hf://{NAME}", **fields), "prompts").items]


@pytest.mark.slow
def test_splits_are_read_whole_or_in_slices(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    (tmp_path / "owner" / "name" / "train.jsonl").write_bytes(_jsonl("a folder of that name"))
    monkeypatch.chdir(tmp_path)
    train = [f"train {n}" for n in range(10)]
    hub.push(NAME, {"train.jsonl": _jsonl(*train), "test.jsonl": _jsonl("test 0")})
    assert _texts() == train
    assert _texts(limit=2) == train[:2]
    assert _texts(split="test") == ["test 0"]
    assert _texts(split="train[20%:50%]") == train[2:5]
    assert _texts(split="train[:3]") == train[:3]
    for split in ("validation", "train[1:x]"):
        with pytest.raises(UserError, match=r"split (validation|train\[1:x\])\): cannot be read"):
            _texts(split=split)
    assert "Bearer hf_secret" in hub.tokens


def test_configurations_are_those_of_the_readme(hub: Hub) -> None:
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in ("main", "socratic"))
    files = {f"{name}/{n}.jsonl": _jsonl(f"{name} {n}") for name in ("main", "socratic") for n in range(2)}
    hub.push(NAME, {"README.md": f"---\nconfigs:\n{configs}---\n".encode()} | files)
    assert _texts(config="socratic") == ["socratic 0", "socratic 1"]
    with pytest.raises(UserError, match=r"(?s)cannot be read: .*'main', 'socratic'"):
        _texts()
    hub.push(NAME, {"README.md": b"---\nconfigs: [\n---\n"} | files)
    with pytest.raises(UserError, match="cannot be read"):
        _texts()


def test_classes_of_parquet_files_have_their_names(hub: Hub) -> None:
    label = {"label": {"names": ["neg", "pos"], "_type": "ClassLabel"}, "text": {"dtype": "string", "_type": "Value"}}
    columns = {"text": ["a", "b"], "label": [0, 1]}
    hub.push(NAME, {"data/train-00000-of-00001.parquet": _parquet(columns, label)})
    rows = load_rows(Source(path=f"hf://{NAME}"), "texts").items
    assert [row.label for row in rows] == ["neg", "pos"]


@pytest.mark.slow
def test_a_stage_goes_on_at_the_commit_that_it_began_with(hub: Hub, tmp_path: Path) -> None:
    first = hub.push(NAME, {"train.jsonl": _jsonl("old")})
    hub.push(NAME, {"train.jsonl": _jsonl("tagged")}, ref="v1")
    source, record = Source(path=f"hf://{NAME}"), str(tmp_path / "hub.json")
    assert pinned(source, record) == {"revision": first}
    second = hub.push(NAME, {"train.jsonl": _jsonl("new")})
    again = source.model_copy(update=pinned(source, record))
    assert [row.messages[0].content for row in load_rows(again, "prompts").items] == ["old"]
    assert (_texts(), _texts(revision="v1"), _texts(revision=second)) == (["new"], ["tagged"], ["new"])
    assert commits_of(record) == {f"hf://{NAME}@main": first}
    assert pinned(again, record) == pinned(Source(path="a.jsonl"), record) == {}


def test_what_the_hub_does_not_have_is_refused_without_its_token(hub: Hub, tmp_path: Path) -> None:
    hub.push(NAME, {"name.py": b"raise SystemExit", "train.jsonl": _jsonl("a")})
    for source in (Source(path=f"hf://{NAME}", revision="v9"), Source(path="hf://owner/none")):
        with pytest.raises(UserError, match="not found on the hub") as missing:
            pinned(source, str(tmp_path / "hub.json"))
        with pytest.raises(UserError, match="cannot be read") as unread:
            load_rows(source, "prompts")
        assert "hf_secret" not in f"{missing.value} {unread.value}"
    with pytest.raises(UserError, match="scripts are no longer supported"):
        _texts()
