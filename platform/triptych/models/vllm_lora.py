"""Features of peft's LoRA that vLLM does not serve, by an adapter's configuration and the names of its tensors."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from triptych.models.peft_files import LORA_FACTOR

_PLAIN_INITS = {"gaussian", "eva", "orthogonal", "mica", "lora_ga"}
"""Ways to draw the first weights that leave the base alone; the others (PiSSA, OLoRA, CorDA, LoftQ) change it."""
_SERVED_WHOLE = {"classifier", "score"}
_ENTIRE = re.compile(r"\.(embed_tokens|lm_head)\.base_layer\.weight$|\.(score|classifier)\.(weight|bias)$")
"""Entire matrices that vLLM takes, or skips, beside the factors."""
_UNEXPECTED = re.compile(r"expected target modules in .* but received (\[.*?\])", re.DOTALL)
_QUOTED = re.compile(r"'([^']+)'")


def unserved_setting(config: Mapping[str, Any]) -> str | None:
    """The first setting of an adapter_config.json that vLLM does not serve, as a sentence about the adapter."""
    init = config.get("init_lora_weights", True)
    others = sorted(set(config.get("modules_to_save") or ()) - _SERVED_WHOLE)
    refusals = {
        "it adapts the experts of a mixture (target_parameters), for which vLLM's CPU engine has no LoRA: merge it "
        "into the base (`adapters merge`) and serve that": config.get("target_parameters"),
        "it uses DoRA (use_dora): merge it into the base, or train plain LoRA": config.get("use_dora"),
        "it trains biases (lora_bias)": config.get("lora_bias"),
        f"it trains biases (bias={config.get('bias')!r})": config.get("bias", "none") != "none",
        f"init_lora_weights={init!r} changed the base's weights: convert it to plain LoRA first": (
            isinstance(init, str) and init.lower() not in _PLAIN_INITS
        ),
        f"it trains whole modules (modules_to_save: {', '.join(others)})": others,
        "it trains single tokens (trainable_token_indices)": config.get("trainable_token_indices"),
        "it is an activated LoRA (alora_invocation_tokens)": config.get("alora_invocation_tokens"),
        "it replicates layers (layer_replication)": config.get("layer_replication"),
        "it is block-diagonal (use_bdlora)": config.get("use_bdlora"),
        "it uses QA-LoRA (use_qalora)": config.get("use_qalora"),
    }
    return next((reason for reason, applies in refusals.items() if applies), None)


def unserved_tensor(names: Iterable[str]) -> str | None:
    """The first tensor of a LoRA that vLLM has no place for, as a sentence about the adapter."""
    stray = (name for name in names if not LORA_FACTOR.fullmatch(name) and not _ENTIRE.search(name))
    return next((f"vLLM has no place for its tensor {name}" for name in stray), None)


def unserved_module(message: str) -> str | None:
    """What vLLM says as it loads a LoRA for a layer that it adapts in other families only, as a sentence; else None.

    Heads and embeddings are such layers: Llama's are adapted, and Qwen2's are not.
    """
    match = _UNEXPECTED.search(message)
    if match is None:
        return None
    modules = ", ".join(sorted(set(_QUOTED.findall(match[1]))))
    return f"vLLM has no LoRA for {modules} in this base; merge it into the base (`adapters merge`)"
