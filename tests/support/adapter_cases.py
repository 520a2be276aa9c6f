"""Adapters as plain peft saves them, of every kind that is met: what a LoRA can be, and what only looks like one."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

Change = Callable[[dict[str, Tensor], dict[str, Any]], None]
"""Changes an adapter's tensors and its configuration in place."""
ATTENTION, ALL = ["q_proj", "v_proj"], "all-linear"
CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}


@dataclass(frozen=True)
class AdapterCase:
    """An adapter to save on a base, and what is done to its files afterwards."""

    config: PeftConfig
    base: str = "tied"
    """`tied`: a Llama whose head is its table; `untied`: a Qwen2 with a head of its own, and with biases."""
    change: Change | None = None


def lora(targets: Any = ALL, **more: Any) -> LoraConfig:
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": targets} | CAUSAL | more)


def renamed(before: str, after: str) -> Change:
    def change(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
        for name in list(tensors):
            tensors[name.replace(before, after, 1)] = tensors.pop(name)

    return change


def narrowed(tensors: dict[str, Tensor], _: dict[str, Any]) -> None:
    for name, tensor in tensors.items():
        if "q_proj.lora_A" in name:
            tensors[name] = tensor[:, :-8].clone()


def scaled_to_nought(_: dict[str, Tensor], config: dict[str, Any]) -> None:
    config["lora_alpha"] = 0


PATTERNS: dict[str, Any] = {
    "rank_pattern": {"layers.1.self_attn.q_proj": 2, "v_proj": 6},
    "alpha_pattern": {"q_proj": 64, "down_proj": 3},
}
ADALORA = AdaLoraConfig(
    init_r=5, target_r=2, lora_alpha=7, total_step=10, target_modules=["q_proj", "down_proj"], **CAUSAL
)
CASES: dict[str, AdapterCase] = {
    "attention": AdapterCase(lora(ATTENTION)),
    "all linear layers": AdapterCase(lora()),
    "rank pattern": AdapterCase(lora(rank_pattern=PATTERNS["rank_pattern"])),
    "alpha pattern": AdapterCase(lora(alpha_pattern=PATTERNS["alpha_pattern"])),
    "both patterns": AdapterCase(lora(**PATTERNS)),
    "rsLoRA": AdapterCase(lora(use_rslora=True)),
    "rsLoRA, both patterns": AdapterCase(lora(use_rslora=True, **PATTERNS)),
    "a regular expression": AdapterCase(lora(r".*\.1\..*(up|down)_proj")),
    "chosen layers": AdapterCase(lora(ATTENTION, layers_to_transform=[1])),
    "a base with biases": AdapterCase(lora(), "untied"),
    "DoRA": AdapterCase(lora(use_dora=True)),
    "head": AdapterCase(lora(["q_proj", "lm_head"]), "untied"),
    "tied head": AdapterCase(lora(["q_proj", "lm_head"])),
    "embeddings": AdapterCase(lora(["q_proj", "embed_tokens"]), "untied"),
    "tied embeddings": AdapterCase(lora(["q_proj", "embed_tokens"])),
    "head and embeddings": AdapterCase(lora(["embed_tokens", "lm_head"]), "untied"),
    "AdaLoRA": AdapterCase(ADALORA),
    "PiSSA": AdapterCase(lora(init_lora_weights="pissa")),
    "PiSSA, rsLoRA, both patterns": AdapterCase(lora(init_lora_weights="pissa", use_rslora=True, **PATTERNS)),
    "OLoRA": AdapterCase(lora(init_lora_weights="olora")),
    "prompt tuning": AdapterCase(PromptTuningConfig(num_virtual_tokens=3, **CAUSAL)),
    "prefix tuning": AdapterCase(PrefixTuningConfig(num_virtual_tokens=3, **CAUSAL)),
    "IA3": AdapterCase(IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **CAUSAL)),
    "LoHa": AdapterCase(LoHaConfig(r=4, target_modules=ATTENTION, **CAUSAL)),
    "trained head": AdapterCase(lora(ATTENTION, modules_to_save=["lm_head"]), "untied"),
    "trained embeddings": AdapterCase(lora(ATTENTION, modules_to_save=["embed_tokens"]), "untied"),
    "trained norms": AdapterCase(lora(ATTENTION, modules_to_save=["input_layernorm"])),
    "trained tokens": AdapterCase(lora(ATTENTION, trainable_token_indices=[3, 4])),
    "trained biases": AdapterCase(lora(ATTENTION, bias="lora_only"), "untied"),
    "biases of the factors": AdapterCase(lora(ATTENTION, lora_bias=True)),
    "names of torch.compile": AdapterCase(lora(), change=renamed("model.model.", "model._orig_mod.model.")),
    "names of a wrapper": AdapterCase(lora(), change=renamed("model.layers", "model.language_model.layers")),
    "names without peft's prefix": AdapterCase(lora(), change=renamed("base_model.model.", "")),
    "a block too many": AdapterCase(lora(), change=renamed("layers.1.", "layers.7.")),
    "fused projections of another family": AdapterCase(lora(ATTENTION), change=renamed("q_proj", "qkv_proj")),
    "another width": AdapterCase(lora(ATTENTION), change=narrowed),
    "alpha of nought": AdapterCase(lora(), change=scaled_to_nought),
}


def untied_base(folder: Path, tokenizer_of: Path) -> None:
    """A Qwen2 with a head of its own, beside the tokenizer of another folder."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_of)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "max_position_embeddings": 512}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Qwen2Config(vocab_size=len(tokenizer), initializer_range=0.2, **sizes, **heads, **ends)
        model = Qwen2ForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.data.normal_(std=0.2)
    model.save_pretrained(folder)


def save_adapter(case: AdapterCase, base: Path, folder: Path) -> None:
    """As peft saves it after training: all that is trained was moved at random."""
    torch.manual_seed(1)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), case.config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            size = 0.02 if "magnitude" in name else 0.1
            parameter.data += torch.randn_like(parameter) * size
    model.save_pretrained(str(folder))
    if case.change is not None:
        tensors = load_file(folder / "adapter_model.safetensors")
        file = folder / "adapter_config.json"
        config = json.loads(file.read_text())
        case.change(tensors, config)
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        file.write_text(json.dumps(config))
