"""A model small enough for seconds, with heads that vLLM's CPU attention takes, and adapters for it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

VOCAB = 512
STOP = 2


@dataclass(frozen=True)
class Adapter:
    folder: Path
    content: bytes
    config: dict[str, Any]


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random Llama: 2 layers, 4 query and 2 key heads of 32, tied embeddings, fp32, no tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("rollout") / "model"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=STOP,
            pad_token_id=0,
            initializer_range=0.2,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def make_adapter(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Adapter]:
    """make_adapter(seed, size=0.05, **LoraConfig arguments): random A and B, in peft's format."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    def make(seed: int, size: float = 0.05, **arguments: Any) -> Adapter:
        folder = tmp_path_factory.mktemp("rollout") / f"adapter-{seed}"
        settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"} | arguments
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = get_peft_model(LlamaForCausalLM.from_pretrained(model_dir), LoraConfig(**settings))
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    torch.nn.init.normal_(parameter, std=size)
            model.save_pretrained(str(folder))
        config = json.loads((folder / "adapter_config.json").read_text())
        return Adapter(folder, (folder / "adapter_model.safetensors").read_bytes(), config)

    return make


@pytest.fixture(scope="module")
def reference(model_dir: Path) -> Callable[..., list[list[float]]]:
    """reference(adapter or None, sequences, prompt_lens): log-probabilities by transformers and peft, fp32."""
    import torch
    from peft import PeftModel
    from transformers import LlamaForCausalLM

    def logprobs(
        adapter: Adapter | None, sequences: list[list[int]], prompt_lens: list[int], temperature: float = 1.0
    ) -> list[list[float]]:
        model = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
        if adapter is not None:
            model = PeftModel.from_pretrained(model, adapter.folder)
        rows = []
        with torch.inference_mode():
            for ids, prompt_len in zip(sequences, prompt_lens, strict=True):
                logits = model(torch.tensor([ids])).logits[0, :-1].float() / temperature
                picked = logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None])[:, 0]
                rows.append(picked[prompt_len - 1 :].tolist())
        return rows

    return logprobs
