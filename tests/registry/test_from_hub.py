"""`adapters register hf://owner/name`: one commit of a model repository of the hub, and an adapter's files alone."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.adapter_cases import CASES, save_adapter
from tests.support.hub import Hub
from triptych.cli import main
from triptych.registry import Registry
from triptych.registry.from_hub import wanted

Register = Callable[..., tuple[int, str]]


@pytest.fixture
def register(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Register:
    """`register(place)` as `films`: exit code and stderr."""

    def run(place: str) -> tuple[int, str]:
        words = ["adapters", "register", "films", place, "--base", str(tiny_model_dir), "--registry", url]
        monkeypatch.setattr(sys, "argv", ["triptych", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0), capsys.readouterr().err

    url = f"sqlite:///{tmp_path}/registry.db"
    return run


@pytest.fixture
def saved(tmp_path: Path, tiny_model_dir: Path) -> Path:
    save_adapter(CASES["both patterns"], tiny_model_dir, tmp_path / "saved")
    return tmp_path / "saved"


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_commit_is_registered_and_named(register: Register, saved: Path, tmp_path: Path, hub: Hub) -> None:
    others = {"tokenizer.json": b"{}", "training_args.bin": b"pickle", "checkpoint-5/adapter_model.safetensors": b"x"}
    first = hub.push("owner/films", files_of(saved) | others)
    hub.push("owner/films", {"README.md": b"nothing is left"})
    code, said = register(f"hf://owner/films@{first}")
    assert code == 0, said
    known = Registry(f"sqlite:///{tmp_path}/registry.db")
    version = known.get("films@1")
    assert version.lineage["source"] == f"hf://owner/films@{first}"
    folder = known.fetch(version.ref)
    ours = load_file(saved / "adapter_model.safetensors")
    theirs = load_file(folder / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in ours.items())
    assert not (folder / "training_args.bin").exists()
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
    assert hub.tokens - {""} == {"Bearer hf_secret"}


def test_what_is_no_adapter_is_refused(register: Register, tmp_path: Path, hub: Hub) -> None:
    hub.push("owner/old", {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"})
    code, said = register("hf://owner/old")
    assert code == 2
    assert "adapter_model.safetensors is missing, it has adapter_config.json, adapter_model.bin; allowed:" in said
    code, said = register("hf://owner/none")
    assert (code, "the hub has no such adapter, or not for this token" in said) == (2, True)
    code, said = register("hf://none")
    assert (code, "allowed: a model repository of the Hugging Face hub, hf://owner/name[@revision]" in said) == (
        2,
        True,
    )
    assert not (tmp_path / "registry.db").exists(), "nothing half-written"


def test_names_that_lead_out_of_the_folder_are_left_out() -> None:
    names = ["triptych.json", "adapter_model.safetensors", "../../etc/x.json", "/etc/y.json", "notes.bin"]
    assert wanted("hf://a/b", names) == ["triptych.json", "adapter_model.safetensors"]
