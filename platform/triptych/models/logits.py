"""Scaling of logits after the output projection, by model family."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig


def scale_logits(logits: Tensor, config: PreTrainedConfig) -> Tensor:
    """Granite divides, Cohere multiplies, Gemma 2 caps: c * tanh(x / c). All others leave logits as they are."""
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    if (factor := getattr(config, "logit_scale", None)) is not None:
        logits = logits * factor
    if (cap := getattr(config, "final_logit_softcapping", None)) is not None:
        logits = torch.tanh(logits / cap) * cap
    return logits
