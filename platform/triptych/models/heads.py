"""Scalar and class heads on hidden states, and the scaling of the language model's own logits."""

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from triptych.errors import UserError


class ScalarHead(nn.Module):
    """One number a position: hidden [..., d] -> [...], always in float32.

    Initialised as in Huang et al. 2024 (arXiv 2403.17031): standard deviation 1 / sqrt(d + 1), bias 0.
    """

    def __init__(self, hidden_size: int, generator: torch.Generator | None = None) -> None:
        super().__init__()
        scale = 1 / math.sqrt(hidden_size + 1)
        self.weight = nn.Parameter(torch.randn(1, hidden_size, generator=generator) * scale)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias).squeeze(-1)

    @torch.no_grad()
    def load(self, weight: Tensor, bias: Tensor) -> None:
        """Take the values of another head: weight [1, d], bias [1]."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)

    @torch.no_grad()
    def standardize(self, mean: float, std: float) -> None:
        """Fold (score - mean) / std into the head."""
        self.weight.div_(std)
        self.bias.sub_(mean).div_(std)


class ClassHead(nn.Module):
    """A logit for each class: hidden [..., d] -> [..., classes], always in float32, without a bias.

    As the head of transformers' sequence classifiers: standard deviation 0.02.
    """

    def __init__(self, hidden_size: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, hidden_size) * 0.02)

    @torch.no_grad()
    def load(self, weight: Tensor) -> None:
        """Take the values of another head: weight [classes, d]."""
        self.weight.copy_(weight)

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return nn.functional.linear(hidden.to(self.weight.dtype), self.weight)


def scale_logits(logits: Tensor, config: PreTrainedConfig) -> Tensor:
    """Scale logits as the model's family does after the output projection.

    Granite divides, Cohere and Falcon H1 multiply, Gemma 2 caps: c * tanh(x / c). All others leave them as they are.
    """
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    for name in ("logit_scale", "lm_head_multiplier"):
        if (factor := getattr(config, name, None)) is not None:
            logits = logits * factor
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if (cap := getattr(config, name, None)) is not None:
            logits = torch.tanh(logits / cap) * cap
    return logits


@torch.no_grad()
def check_logits(model: PreTrainedModel) -> None:
    """UserError where a family does something to its logits, or to hidden states before them, that is not known here.

    Compares the logits of some tokens with what `scale_logits` makes of their hidden states.
    """
    tokens = torch.arange(4, device=model.device)[None] % model.config.vocab_size
    hidden = getattr(model, model.base_model_prefix)(input_ids=tokens, use_cache=False).last_hidden_state
    own = model(input_ids=tokens, use_cache=False).logits.float()
    found = scale_logits(model.get_output_embeddings()(hidden), model.config).float()
    if (found - own).abs().max() > 0.05 * own.abs().max():
        raise UserError(
            f"model.base: a {type(model).__name__} makes its logits in a way that is not computed here; allowed: a "
            "product with the output embeddings that is divided, multiplied or capped (logits_scaling, logit_scale, "
            "lm_head_multiplier, final_logit_softcapping, logits_soft_cap of config.json)"
        )
