"""Families of causal language models as tiny random models: the configurations, and what is expected of each."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

WINDOW = 6
"""Tokens that a window shows, fewer than the rows of the tests have."""
_COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_HEAD = {"head_dim": 32}
_ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
_LATENT = _ROUTED | {
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 32,
    "v_head_dim": 32,
    "num_key_value_heads": 2,
}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 32,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 8,
    "mamba_expand": 2,
    "mamba_d_conv": 4,
}
_DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "layer_types": ["linear_attention", "full_attention"],
}
_CAPPED = _HEAD | {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 32, "sliding_window": WINDOW}
_CONV: dict[str, Any] = {"conv_L_cache": 3, "conv_dim": 64, "block_dim": 64, "block_auto_adjust_ff_dim": False}
_CONV |= {"block_ff_dim": 96, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.0}
"""The sizes are fields of published checkpoints that vLLM reads and transformers does not."""
_GPT = {"n_positions": 256, "n_embd": 64, "n_layer": 2, "n_head": 2}
_NO_DROPOUT = ("attention_dropout", "residual_dropout", "dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop")


@dataclass(frozen=True)
class Family:
    """A tiny configuration, and how the family is trained."""

    config: dict[str, Any] = field(default_factory=dict)
    packed: bool = True
    prefix: bool = True
    """Every block has keys and values of one shape."""
    float32_inside: bool = False
    """The model computes a part in float32 whatever its weights are: delta rules, state spaces, routers."""
    ordinary: bool = False
    """Stands for its kind in the ordinary tests; all others are of the matrix."""


def _padded(config: dict[str, Any], *, ordinary: bool = False) -> Family:
    """A family that mixes tokens by more than attention."""
    return Family(config, packed=False, prefix=False, float32_inside=True, ordinary=ordinary)


def _routed(config: dict[str, Any], *, prefix: bool = True, ordinary: bool = False) -> Family:
    """A mixture of experts."""
    return Family(config, prefix=prefix, float32_inside=True, ordinary=ordinary)


FAMILIES: dict[str, Family] = {
    "llama": Family(ordinary=True),
    "mistral": Family(_HEAD | {"sliding_window": WINDOW}),
    "mixtral": _routed(_LOCAL_EXPERTS),
    "qwen2": Family(),
    "qwen2_moe": _routed(_EXPERTS | {"shared_expert_intermediate_size": 32}),
    "qwen3": Family(_HEAD),
    "qwen3_moe": _routed(_EXPERTS | _HEAD, ordinary=True),
    "qwen3_next": _padded(_EXPERTS | _HEAD | _DELTA | {"shared_expert_intermediate_size": 32}),
    "gemma": Family(_HEAD),
    "gemma2": Family(_CAPPED, ordinary=True),
    "gemma3_text": Family(_HEAD | _ALTERNATING | {"query_pre_attn_scalar": 32}),
    "vaultgemma": Family(_CAPPED),
    "recurrent_gemma": _padded(
        {"lru_width": 64, "attention_window_size": 16, "block_types": ["recurrent", "attention"]}
    ),
    "phi": Family({"num_key_value_heads": 2}),
    "phi3": Family({"sliding_window": WINDOW}),
    "phimoe": _padded(_LOCAL_EXPERTS | {"sliding_window": WINDOW}),
    "smollm3": Family(),
    "olmo": Family(),
    "olmo2": Family(),
    "olmo3": Family(_ALTERNATING),
    "olmoe": _routed({"num_experts": 4, "num_experts_per_tok": 2}),
    "olmo_hybrid": _padded(_DELTA),
    "granite": Family({"embedding_multiplier": 2.0, "attention_multiplier": 0.2, "logits_scaling": 3.0}),
    "granitemoe": _routed(_LOCAL_EXPERTS | {"logits_scaling": 3.0}),
    "granitemoeshared": _routed(_LOCAL_EXPERTS | {"shared_intermediate_size": 32}),
    "granitemoehybrid": _padded(
        _MAMBA | _LOCAL_EXPERTS | {"shared_intermediate_size": 32, "layer_types": ["mamba", "attention"]}, ordinary=True
    ),
    "bamba": _padded(_MAMBA | {"attn_layer_indices": [1]}),
    "glm": Family(_HEAD),
    "glm4": Family(_HEAD),
    "glm4_moe": _routed(_HEAD | _ROUTED),
    "gpt_oss": _routed(_HEAD | _LOCAL_EXPERTS | _ALTERNATING, ordinary=True),
    "deepseek_v2": _routed(_LATENT | {"topk_method": "greedy"}, prefix=False),
    "deepseek_v3": _routed(_LATENT, prefix=False),
    "lfm2": Family(_CONV | {"layer_types": ["conv", "full_attention"]}, packed=False, prefix=False, ordinary=True),
    "lfm2_moe": _padded(_CONV | _EXPERTS | {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1}),
    "falcon_h1": _padded(_MAMBA | {"mamba_d_ssm": 128}),
    "starcoder2": Family({"sliding_window": WINDOW}),
    "cohere": Family({"logit_scale": 0.5}),
    "cohere2": Family(_ALTERNATING | {"logit_scale": 0.5}),
    "ernie4_5": Family(_HEAD),
    "ernie4_5_moe": _routed({"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32}),
    "exaone4": Family(_ALTERNATING),
    "seed_oss": Family(_HEAD),
    "stablelm": Family(packed=False, prefix=False),
    "nemotron": Family(packed=False, prefix=False),
    "arcee": Family(),
    "apertus": Family(),
    "helium": Family(_HEAD),
    "hunyuan_v1_dense": Family(_HEAD),
    "minimax_m2": _routed(_HEAD | _LOCAL_EXPERTS | {"rotary_dim": 32, "scoring_func": "sigmoid"}),
    "jamba": _padded({"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 4, "mamba_d_state": 8}),
    "mamba": _padded({"state_size": 8}),
    "mamba2": _padded({"state_size": 16, "num_heads": 4, "head_dim": 32, "n_groups": 1, "chunk_size": 8}),
    "zamba2": _padded(
        {"n_mamba_heads": 4, "mamba_headdim": 32, "mamba_ngroups": 1, "mamba_d_state": 16, "chunk_size": 8}
        | {"num_mem_blocks": 1, "layers_block_type": ["mamba", "hybrid"], "adapter_rank": 4}
    ),
    "gpt2": Family(_GPT),
    "gpt_neox": Family(),
    "opt": Family({"ffn_dim": 96, "word_embed_proj_dim": 64}),
    "bloom": _padded({"n_layer": 2, "n_head": 2}),
    "falcon": Family(packed=False, prefix=False),
    "doge": Family(packed=False, prefix=False),
    "cwm": Family(_HEAD | _ALTERNATING),
}
"""`model_type` -> the family."""

each_family = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if f.ordinary else [pytest.mark.exhaustive]) for n, f in FAMILIES.items()]
)
"""Every family of the table: those that differ in kind in ordinary runs, all of them in exhaustive ones."""


def tiny(name: str, dtype: torch.dtype, **changes: Any) -> PreTrainedModel:
    """A family's model with random weights, always the same; norms, biases and sinks are random as well.

    `changes`: other fields of its configuration.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        still = dict.fromkeys(_NO_DROPOUT, 0.0)
        config = AutoConfig.for_model(name, **_COMMON | still | FAMILIES[name].config | changes)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation="eager", experts_implementation="eager"
        )
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.config.use_cache = False
    return model.eval()
