"""Registries and small adapters."""

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.support.hub import Hub, hub_server
from triptych.registry import AdapterVersion, Registry

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"


def _write_lora(
    folder: Path, *, r: int = 4, hidden: int = 8, tensor_rank: int | None = None, tensors: Any = None, **config: Any
) -> Path:
    folder.mkdir(parents=True)
    rank = tensor_rank or r
    pair = {f"{MODULE}.lora_A.weight": torch.randn(rank, hidden), f"{MODULE}.lora_B.weight": torch.randn(hidden, rank)}
    save_file(pair | (tensors or {}), folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": r, "lora_alpha": 2 * r, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(values | config))
    return folder


def _write_reward(folder: Path) -> Path:
    _write_lora(folder)
    save_file({"weight": torch.randn(1, 8), "bias": torch.zeros(1)}, folder / "head.safetensors")
    note = {"kind": "reward", "base": "b", "base_fingerprint": "f", "normalization": {"mean": 0.5, "std": 2.0}}
    (folder / "triptych.json").write_text(json.dumps(note))
    return folder


@pytest.fixture
def write_lora() -> Callable[..., Path]:
    """`write_lora(folder, r=, tensor_rank=, tensors=, **config)`: a LoRA of one layer, hidden size 8."""
    return _write_lora


@pytest.fixture
def write_reward() -> Callable[[Path], Path]:
    """`write_reward(folder)`: a reward model of hidden size 8."""
    return _write_reward


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """The folder of a sound LoRA."""
    return _write_lora(tmp_path / "lora")


@pytest.fixture
def url(tmp_path: Path) -> str:
    """URL of a registry that does not exist yet."""
    return f"sqlite:///{tmp_path}/runs/registry.db"


@pytest.fixture
def registry(url: str) -> Registry:
    """An empty registry."""
    return Registry(url)


@pytest.fixture
def add(registry: Registry, lora: Path) -> Callable[..., AdapterVersion]:
    """`add(name, parents=[...])`: the next version of a name."""

    def add_version(name: str = "reviews", **lineage: Any) -> AdapterVersion:
        return registry.register(
            name, lora, kind="policy", base="b", base_fingerprint="f", lineage=lineage, metrics={"loss": 1.5}
        )

    return add_version


def _postgresql_program(name: str) -> str | None:
    """Its path; Debian keeps the server's programs in a folder for each version, which is not on the PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: float(path.parts[4]))
    return shutil.which(name) or next(map(str, reversed(versions)), None)


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """URL of a PostgreSQL server of our own; skipped where there is no server or no driver."""
    pytest.importorskip("psycopg")
    initdb, postgres = _postgresql_program("initdb"), _postgresql_program("postgres")
    if initdb is None or postgres is None:
        pytest.skip("no PostgreSQL here (Debian: postgresql)")
    user = "nobody" if os.geteuid() == 0 else None  # the server refuses to run as root
    folder = Path(subprocess.check_output(["mktemp", "-d"], user=user, text=True).strip())
    create = [initdb, "--no-sync", "-D", f"{folder}/data", "-U", "tri", "-A", "trust"]
    subprocess.run(create, user=user, check=True, cwd=folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [postgres, "-F", "-D", f"{folder}/data", "-p", str(port), "-h", "127.0.0.1", "-k", str(folder)]
    with subprocess.Popen(command, user=user, cwd=folder, stderr=subprocess.DEVNULL) as server:
        deadline = time.monotonic() + 30
        while socket.socket().connect_ex(("127.0.0.1", port)) and time.monotonic() < deadline:
            time.sleep(0.1)
        yield f"postgresql+psycopg://tri:secret-word@127.0.0.1:{port}/postgres"
        server.terminate()
    shutil.rmtree(folder)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as server:
        template = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
