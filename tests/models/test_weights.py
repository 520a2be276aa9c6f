"""A base is what transformers reads of its folder, whatever else lies there."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.families import tiny
from triptych.errors import UserError
from triptych.methods.freeze import whole
from triptych.methods.targets import targeted
from triptych.models.base import fingerprint, load_causal_lm, resolve_base
from triptych.models.weights import INDEX, read_weights, weight_files, without_other_weights
from triptych.recipe.method import Freeze
from triptych.recipe.model import Model

FILES = ("one.safetensors", "two.safetensors")


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny model, and beside its weights a file that is none of its own."""
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    found = Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))
    save_file({"model.norm.weight": torch.full((128,), 7.0)}, found / "zz-other.safetensors")
    return found


@pytest.fixture
def split(folder: Path) -> Path:
    """The same in two files, which an index names."""
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    placed = {name: FILES[number % 2] for number, name in enumerate(names)}
    for file in FILES:
        save_file({name: weights[name] for name in names if placed[name] == file}, folder / file, {"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": placed}))
    (folder / "model.safetensors").unlink()
    return folder


def test_an_engine_finds_no_other_weights(folder: Path, tiny_model_dir: Path) -> None:
    """vLLM would load every safetensors file of a folder without an index."""
    found = without_other_weights(folder)
    assert {file.name for file in found.iterdir()} == {file.name for file in tiny_model_dir.iterdir()}
    assert (found / "model.safetensors").read_bytes() == (tiny_model_dir / "model.safetensors").read_bytes()
    assert without_other_weights(tiny_model_dir) == tiny_model_dir


def test_an_engine_reads_the_files_of_an_index(split: Path) -> None:
    assert without_other_weights(split) == split


def test_other_files_are_no_part_of_the_base(folder: Path, tiny_model_dir: Path) -> None:
    assert fingerprint(folder) == fingerprint(tiny_model_dir)
    assert resolve_base(Model(base=str(folder))) == folder
    own = load_file(tiny_model_dir / "model.safetensors")
    for found in (read_weights(folder), whole(Freeze(layers=1), folder, {})):
        assert (found["model.norm.weight"] == own["model.norm.weight"]).all()


def test_the_index_says_which_files_are_the_base(split: Path, tiny_model_dir: Path) -> None:
    assert [file.name for file in weight_files(split)] == list(FILES)
    assert read_weights(split).keys() == load_file(tiny_model_dir / "model.safetensors").keys()
    before = fingerprint(split)
    (split / "zz-other.safetensors").write_bytes(b"anything")
    assert fingerprint(split) == before


def test_two_bases_in_one_folder_are_refused(split: Path, tiny_model_dir: Path) -> None:
    shutil.copy(tiny_model_dir / "model.safetensors", split)
    with pytest.raises(UserError, match=r"holds model\.safetensors, and an index that names one\.safetensors.*remove"):
        resolve_base(Model(base=str(split)))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"x": "../two.safetensors"}}, "outside the folder"),
        ({"weight_map": {}}, "is no index"),
        ([], "is no index"),
        ({"weight_map": {"x": "three.safetensors"}}, r"has no three\.safetensors, which its index names"),
    ],
)
def test_an_index_that_leads_nowhere_is_refused(split: Path, index: object, message: str) -> None:
    (split / INDEX).write_text(json.dumps(index))
    with pytest.raises(UserError, match=message):
        fingerprint(split)


def test_a_folder_with_other_files_alone_is_no_base(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors, and no model\.safetensors\.index\.json"):
        resolve_base(Model(base=str(folder)))


def test_experts_are_not_rounded_in_silence(tmp_path: Path) -> None:
    tiny("qwen3_moe", torch.float32).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"model\.quantization: int8 .*experts\.gate_up_proj.*allowed here"):
        load_causal_lm(tmp_path, torch.float32, quantization="int8")


def test_experts_that_a_method_leaves_out_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        names = targeted(tiny("qwen3_moe", torch.float32), "all-linear")
    assert not any("experts" in name for name in names)
    assert "leaves out the experts of this mixture" in caplog.text


def test_layers_whose_bare_weight_is_read_are_no_targets() -> None:
    names = [name.rpartition(".")[2] for name in targeted(tiny("jamba", torch.float32), "all-linear")]
    assert "in_proj" in names
    assert "dt_proj" not in names


def test_a_router_is_no_target() -> None:
    assert not any("router" in name for name in targeted(tiny("phimoe", torch.float32), "all-linear"))
