"""Adapters with random weights, and what puts them into a registry."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from triptych.models.base import fingerprint
from triptych.registry import AdapterVersion, Registry


def _save_lora(base: Path, folder: Path, *, seed: int, r: int = 4, scale: float = 1.0, **lora: Any) -> Path:
    """An adapter with random weights for `base`, as a stage would leave it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = LoraConfig(r=r, lora_alpha=2 * r, target_modules="all-linear", task_type="CAUSAL_LM", **lora)
        adapted = get_peft_model(model, config)
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(0, 0.02 * scale)
    adapted.save_pretrained(str(folder))
    note = {"kind": "lora", "base": base.name, "base_fingerprint": fingerprint(base)}
    (folder / "triptych.json").write_text(json.dumps(note))
    return folder


def _register(registry: Registry, name: str, folder: Path, base: Path) -> AdapterVersion:
    """The folder as the next version of `name`."""
    return registry.register(
        name, folder, kind="policy", base=base.name, base_fingerprint=fingerprint(base), lineage={}, metrics={}
    )


@pytest.fixture(scope="session")
def save_lora() -> Callable[..., Path]:
    """`save_lora(base, folder, seed=, r=, scale=)`: a random adapter."""
    return _save_lora


@pytest.fixture(scope="session")
def register() -> Callable[[Registry, str, Path, Path], AdapterVersion]:
    """`register(registry, name, folder, base)`."""
    return _register


@pytest.fixture(scope="session")
def stock(
    tmp_path_factory: pytest.TempPathFactory,
    _tiny_model: Path,
    save_lora: Callable[..., Path],
    register: Callable[..., Any],
) -> Path:
    """A registry's folder with opinion@1, opinion@2, and toobig@1 whose rank is beyond the config's."""
    folder = tmp_path_factory.mktemp("stock")
    registry = Registry(str(folder / "registry.db"))
    for i, (name, rank) in enumerate((("opinion", 4), ("opinion", 4), ("toobig", 16))):
        made = save_lora(_tiny_model, tmp_path_factory.mktemp("adapter"), seed=i, r=rank)
        register(registry, name, made, _tiny_model)
    return folder


@pytest.fixture
def registry(stock: Path, tmp_path: Path) -> Registry:
    """A registry of the test's own."""
    return Registry(str(shutil.copytree(stock, tmp_path / "registry") / "registry.db"))
