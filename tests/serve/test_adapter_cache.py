"""From the registry to a folder that the engine can rely on, and what is refused before anything starts."""

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triptych import storage
from triptych.errors import RunError, UserError
from triptych.models.base import fingerprint
from triptych.recipe.serve import ServeConfig
from triptych.registry import AdapterVersion, Registry
from triptych.serve import build
from triptych.serve.adapter_cache import fetch_adapter
from triptych.serve.capabilities import VLLM, Capabilities, MisfitError, engine_for
from triptych.serve.preflight import check, check_port


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    monkeypatch.setenv("TRIPTYCH_CACHE", str(tmp_path / "cache"))
    return Registry(str(tmp_path / "registry.db"))


@pytest.fixture
def version(
    registry: Registry,
    tiny_model_dir: Path,
    tmp_path: Path,
    save_lora: Callable[..., Path],
    register: Callable[..., AdapterVersion],
) -> AdapterVersion:
    return register(registry, "opinion", save_lora(tiny_model_dir, tmp_path / "lora", seed=1), tiny_model_dir)


def config_of(registry: Registry, base: Path, **fields: Any) -> ServeConfig:
    return ServeConfig.model_validate({"model": {"base": str(base)}, "registry": registry.url, **fields})


def test_the_copy_is_the_engines_own(version: AdapterVersion) -> None:
    copy = fetch_adapter(version)
    assert storage.verify(str(copy)).digest == version.sha256
    shutil.rmtree(version.url)
    assert fetch_adapter(version) == copy
    assert (copy / "adapter_model.safetensors").is_file()


def test_a_changed_artifact_is_refused_and_leaves_nothing(version: AdapterVersion, tmp_path: Path) -> None:
    weights = Path(version.url) / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(RunError, match=r"adapter_model.safetensors was changed"):
        fetch_adapter(version)
    assert not list((tmp_path / "cache" / "served").glob("*"))


def test_another_artifact_in_its_place_is_refused(
    version: AdapterVersion, tiny_model_dir: Path, tmp_path: Path, save_lora: Callable[..., Path]
) -> None:
    shutil.rmtree(version.url)
    with storage.committed(version.url) as folder:
        save_lora(tiny_model_dir, folder, seed=2)
    with pytest.raises(RunError, match="not what was registered"):
        fetch_adapter(version)


def test_a_damaged_copy_is_made_anew(version: AdapterVersion) -> None:
    copy = fetch_adapter(version)
    weights = copy / "adapter_model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + b"x")
    assert fetch_adapter(version) == copy
    assert weights.read_bytes() == good


def test_what_does_not_fit(version: AdapterVersion, registry: Registry, tiny_model_dir: Path) -> None:
    base = fingerprint(tiny_model_dir)
    wide, narrow = Capabilities(8), Capabilities(2, "engine.max_lora_rank")
    assert engine_for(version, registry, base, {VLLM: wide}) == VLLM
    assert engine_for(version, registry, base, {VLLM: narrow, "wide": wide}) == "wide"
    with pytest.raises(MisfitError, match=r"its rank is 4, and engine.max_lora_rank is 2"):
        engine_for(version, registry, base, {VLLM: narrow})
    with pytest.raises(MisfitError, match=r"another base \(tiny\)"):
        engine_for(version, registry, "0" * 64, {VLLM: wide})


def test_an_adapter_that_vllm_cannot_serve(
    registry: Registry, tiny_model_dir: Path, tmp_path: Path, save_lora: Callable[..., Path]
) -> None:
    folder = save_lora(tiny_model_dir, tmp_path / "dora", seed=1, use_dora=True)
    base = fingerprint(tiny_model_dir)
    registry.register("dora", folder, kind="policy", base="tiny", base_fingerprint=base, lineage={}, metrics={})
    with pytest.raises(UserError, match=r"adapters: dora cannot be served: .*DoRA"):
        check(config_of(registry, tiny_model_dir, adapters=["dora"]))


def test_a_config_that_is_fine_becomes_absolute(
    version: AdapterVersion, registry: Registry, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_model_dir.parent)
    config = ServeConfig.model_validate(
        {"model": {"base": "tiny"}, "registry": registry.url, "artifacts": "art", "adapters": ["opinion"]}
    )
    checked, base = check(config)
    assert checked.model.base == str(tiny_model_dir)
    assert checked.model_id == "tiny"
    assert checked.artifacts == str(tiny_model_dir.parent / "art")
    assert base == fingerprint(tiny_model_dir)


def test_no_registry(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match="there is no registry"):
        build({"model": {"base": str(tiny_model_dir)}, "registry": str(tmp_path / "none.db")})
    assert not (tmp_path / "none.db").exists()


def test_an_unknown_adapter(registry: Registry, version: AdapterVersion, tiny_model_dir: Path) -> None:
    with pytest.raises(UserError, match=r"opinions.*did you mean opinion\?"):
        check(config_of(registry, tiny_model_dir, adapters=["opinions"]))


def test_an_adapter_of_another_base(registry: Registry, version: AdapterVersion, tiny_model_copy: Path) -> None:
    weights = tiny_model_copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="adapters: opinion cannot be served: it was trained on another base"):
        check(config_of(registry, tiny_model_copy, adapters=["opinion"]))


def test_arguments_that_are_none() -> None:
    with pytest.raises(UserError, match=r"serve arguments: .*registry.*; .*ports"):
        build({"model": {"base": "b"}, "ports": 1})


def test_a_port_in_use() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=rf"port: 127.0.0.1:{port} is in use; choose another"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)
