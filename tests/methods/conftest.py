"""Models for the tests of methods."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def biased_model_dir(_tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2-shaped model, whose queries, keys and values have biases; its output head is a matrix of its own."""
    import torch
    from transformers import AutoConfig, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "biased"
    shutil.copytree(_tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    tiny = AutoConfig.from_pretrained(_tiny_model)
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                **{name: getattr(tiny, name) for name in kept},
                num_key_value_heads=2,
                max_position_embeddings=512,
                tie_word_embeddings=False,
                initializer_range=0.2,
                pad_token_id=tiny.pad_token_id,
            )
        )
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder
