"""Probes of an adapter in the registry: read with its files, added to one without, refused where they are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from triptych.errors import UserError
from triptych.models.adapter_effect import Probes, write_probes
from triptych.registry import Registry
from triptych.registry.facts import read_facts

ABOUT: dict[str, Any] = {"kind": "policy", "base": "b", "base_fingerprint": "f", "lineage": {}, "metrics": {}}
PROBES = Probes(((3, 4, 5),), ((-1.0, -2.0),), ((-1.5, -2.5),), "float32")


def test_they_come_with_the_files_and_stay_with_every_copy(registry: Registry, lora: Path, tmp_path: Path) -> None:
    write_probes(lora, PROBES)
    version = registry.register("reviews", lora, **ABOUT)
    probes = registry.facts(version.ref).probes
    assert probes is not None
    assert (probes.sequences, probes.base, probes.adapter) == (PROBES.sequences, PROBES.base, PROBES.adapter)
    assert read_facts(version.url) == registry.facts(version.ref)
    registry.export(version.ref, str(tmp_path / "copy"))
    again = Registry(f"sqlite:///{tmp_path}/other/registry.db")
    assert again.facts(again.register("reviews", tmp_path / "copy", **ABOUT).ref).probes == probes


def test_those_of_an_adapter_that_came_without_are_added_beside_its_files(registry: Registry, lora: Path) -> None:
    version = registry.register("reviews", lora, **ABOUT)
    before = registry.facts(version.ref)
    assert before.probes is None
    registry.add_probes(version.ref, PROBES)
    after = registry.facts(version.ref)
    assert after.probes == PROBES
    assert (after.configs, after.shapes) == (before.configs, before.shapes)
    assert registry.get(version.ref) == version
    registry.fetch(version.ref)  # the files are as they were registered


def test_those_of_other_weights_are_refused(registry: Registry, lora: Path) -> None:
    write_probes(lora, PROBES)
    file = lora / "adapter_model.safetensors"
    save_file({name: tensor * 0.5 for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UserError, match=r"probes.json: weights: it was measured with another adapter_model"):
        registry.register("reviews", lora, **ABOUT)
    assert registry.adapters() == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "probes.json: content: Invalid JSON"),
        ("[]", "probes.json: content: "),
        (json.dumps(PROBES.record() | {"base": [["x", 1.0]]}), "probes.json: base.0.0: "),
        (json.dumps(PROBES.record() | {"adapter": [[-1.0]]}), "probes.json: adapter: its log-probabilities are those"),
        (json.dumps(PROBES.record()).replace("-1.5", "NaN"), "probes.json: adapter: .* not finite"),
    ],
)
def test_malformed_ones_are_refused_by_their_field(registry: Registry, lora: Path, content: str, message: str) -> None:
    (lora / "probes.json").write_text(content)
    with pytest.raises(UserError, match=message):
        registry.register("reviews", lora, **ABOUT)
    assert registry.adapters() == []
