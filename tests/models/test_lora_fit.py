"""A LoRA that its base has no place for, or that does nothing there, is refused before an engine ignores it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.support.families import tiny
from triptych.errors import UserError
from triptych.models.lora_fit import check_lora_fit

Change = Callable[[dict[str, Tensor], dict[str, Any]], None]


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """As peft saves it, of all linear layers."""
    return saved(tiny_model_dir, tmp_path / "adapter", target_modules="all-linear")


def saved(base: Path, folder: Path, *, entire: bool = False, **lora: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(r=4, **lora))
    adapted.save_pretrained(str(folder), save_embedding_layers=entire)
    return folder


def changed(adapter: Path, change: Change) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    change(tensors, config)
    save_file(tensors, adapter / "adapter_model.safetensors")
    (adapter / "adapter_config.json").write_text(json.dumps(config))


def renamed(before: str, after: str) -> Change:
    def change(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace(before, after)] = tensors.pop(name)

    return change


def narrowed(side: str) -> Change:
    def change(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        for name, tensor in tensors.items():
            if f"q_proj.lora_{side}" in name:
                tensors[name] = (tensor[:, :-8] if side == "A" else tensor[:-8]).clone()

    return change


def configured(**fields: Any) -> Change:
    return lambda _, config: config.update(fields)


def without_prefix(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    for name in list(tensors):
        tensors[name.removeprefix("base_model.model.")] = tensors.pop(name)


REFUSED: dict[str, tuple[Change, str]] = {
    "names of a wrapper": (
        renamed("model.model.layers", "model.model.language_model.layers"),
        r"language_model\.layers\.0\S+ matches no layer of the base, which has base_model\.model\.model\.layers\.",
    ),
    "one block more": (renamed("layers.1.", "layers.7."), r"layers\.7\.\S+ matches no layer of the base"),
    "names without peft's prefix": (without_prefix, "matches no layer of the base"),
    "fused projections of another family": (renamed("q_proj", "qkv_proj"), "matches no layer of the base"),
    "a module that is no layer": (renamed("self_attn.q_proj", "self_attn"), "is no linear layer and no table"),
    "fewer inputs": (narrowed("A"), r"q_proj\.lora_A\S* has 120 inputs, and the base's \S+q_proj has 128"),
    "fewer outputs": (narrowed("B"), r"q_proj\.lora_B\S* has 120 outputs, and the base's \S+q_proj has 128"),
    "alpha of nought": (configured(lora_alpha=0), "has no effect there; allowed: a number other than 0"),
    "no alpha": (configured(lora_alpha=None), "the alpha of .* is None"),
    "no number": (configured(lora_alpha=float("nan")), "the alpha of .* is nan"),
    "alpha of nought in one layer": (
        configured(alpha_pattern={"layers.1.self_attn.q_proj": 0}),
        r"the alpha of model\.layers\.1\.self_attn\.q_proj is 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_an_engine_would_ignore_is_refused(adapter: Path, tiny_model_dir: Path, case: str) -> None:
    check_lora_fit(adapter, tiny_model_dir)
    change, message = REFUSED[case]
    changed(adapter, change)
    with pytest.raises(UserError, match=message):
        check_lora_fit(adapter, tiny_model_dir)


def test_embeddings_beside_the_factors_are_those_of_the_base(tiny_model_dir: Path, tmp_path: Path) -> None:
    folder = saved(tiny_model_dir, tmp_path / "adapter", entire=True, target_modules=["q_proj", "embed_tokens"])
    [table] = [
        n for n in load_file(folder / "adapter_model.safetensors") if n.endswith("embed_tokens.base_layer.weight")
    ]
    check_lora_fit(folder, tiny_model_dir)
    changed(folder, lambda tensors, _: tensors.update({table: tensors[table] + 0.5}))
    with pytest.raises(
        UserError, match=r"embed_tokens\.base_layer\.weight differs from the base's: trained embeddings"
    ):
        check_lora_fit(folder, tiny_model_dir)
    changed(folder, lambda tensors, _: tensors.update({table: torch.cat([tensors[table], tensors[table][:2]])}))
    with pytest.raises(UserError, match="a vocabulary that was resized"):
        check_lora_fit(folder, tiny_model_dir)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "lora"),
    [
        ("gpt2", {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
        ("gemma2", {"target_modules": "all-linear"}),
        ("falcon_h1", {"target_modules": ["q_proj", "in_proj", "down_proj"]}),
        ("phi3", {"target_modules": ["qkv_proj", "lm_head", "embed_tokens"]}),
        ("qwen3_moe", {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}),
    ],
)
def test_what_peft_saves_for_a_base_fits_it(tmp_path: Path, family: str, lora: dict[str, Any]) -> None:
    tiny(family, torch.float32).save_pretrained(tmp_path / "base")
    check_lora_fit(saved(tmp_path / "base", tmp_path / "adapter", **lora), tmp_path / "base")
