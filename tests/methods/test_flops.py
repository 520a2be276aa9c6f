"""Model FLOPs against torch's own count of the products that it runs."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from triptych.methods.flops import TokenCounts, forward_flops, train_flops
from triptych.models.sizes import sizes_of
from triptych.recipe import Full, Lora, Method

ROWS, LENGTH = 2, 24
CONFIG = LlamaConfig(
    vocab_size=101,
    hidden_size=96,
    intermediate_size=160,
    num_hidden_layers=3,
    num_attention_heads=6,
    num_key_value_heads=2,
    tie_word_embeddings=False,
)
COUNTS = TokenCounts(tokens=ROWS * LENGTH, logits=ROWS * LENGTH, attended=ROWS * LENGTH * LENGTH)
"""Eager attention computes the half that causality then hides."""


def _model(method: Method) -> Any:
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM._from_config(CONFIG, attn_implementation="eager")
    if isinstance(method, Lora):
        model = get_peft_model(model, LoraConfig(r=method.r, target_modules="all-linear"))
        model.enable_input_require_grads()  # else the first block's backward pass is a part of the others'
    return model


@pytest.mark.parametrize("method", [Lora(r=8), Full(name="full")], ids=lambda method: method.name)
def test_flops_are_those_of_the_products(method: Method) -> None:
    model, sizes = _model(method), sizes_of(CONFIG.to_dict(), "test")
    ids = torch.randint(0, 101, (ROWS, LENGTH))
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=ids).logits.logsumexp(dim=-1).sum()
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    # 1 %: a block's size has its norms, which are no products.
    assert forward_flops(sizes, method, COUNTS) == pytest.approx(forward.get_total_flops(), rel=0.01)
    both = forward.get_total_flops() + backward.get_total_flops()
    assert train_flops(sizes, method, COUNTS) == pytest.approx(both, rel=0.01)


def test_a_token_without_logits_costs_less() -> None:
    sizes = sizes_of(CONFIG.to_dict(), "test")
    less = forward_flops(sizes, Lora(r=8), COUNTS) - forward_flops(
        sizes, Lora(r=8), TokenCounts(COUNTS.tokens, 0, COUNTS.attended)
    )
    assert less == 2 * 101 * 96 * COUNTS.logits
