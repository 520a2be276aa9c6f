"""Small configurations of the families that are built like Llama, with what sets them apart."""

from typing import Any

from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config, SmolLM3Config

SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
CONFIGS = [
    LlamaConfig(**SMALL, tie_word_embeddings=True),
    LlamaConfig(**SMALL, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    LlamaConfig(**SMALL | {"num_key_value_heads": 6}, head_dim=16, tie_word_embeddings=True),
    MistralConfig(**SMALL, head_dim=8, tie_word_embeddings=False),
    Qwen2Config(**SMALL, tie_word_embeddings=True),
    Qwen3Config(**SMALL, head_dim=8, tie_word_embeddings=False),
    SmolLM3Config(**SMALL, tie_word_embeddings=True),
]
