"""Rows are laid end to end only where tokens meet in attention that is computed as the model says."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import (
    and_masks,
    causal_mask_function,
    chunked_overlay,
    sliding_window_causal_mask_function,
)

from tests.support.families import tiny
from triptych.errors import UserError
from triptych.forward.attention import packed_attention, padded_attention
from triptych.forward.masks import window_of
from triptych.forward.mixing import padded_because
from triptych.forward.roles import RoleModel
from triptych.forward.scored_attention import Scoring, scored_attention
from triptych.models.base import load_causal_lm
from triptych.models.heads import check_logits


@pytest.fixture
def llama() -> PreTrainedModel:
    return tiny("llama", torch.float32)


def replace(module: nn.Module, wrapped: Any) -> None:
    """Let `wrapped(forward, hidden_states, ...)` compute a module."""
    before = module.forward
    module.__dict__["forward"] = lambda *args, **settings: wrapped(before, *args, **settings)


def test_plain_attention_packs(llama: PreTrainedModel) -> None:
    assert padded_because(llama) is None


def test_a_layer_that_shifts_tokens_is_padded_whatever_it_is_called(llama: PreTrainedModel) -> None:
    replace(llama.model.layers[1].mlp, lambda own, x: own(x + F.pad(x, (0, 0, 1, -1))))
    assert padded_because(llama) == "its hidden states depend on what stands beside a row"
    assert not RoleModel(llama).packing


def test_a_convolution_pads(llama: PreTrainedModel) -> None:
    llama.model.layers[0].register_module("short", nn.Conv1d(64, 64, 3))
    assert padded_because(llama) == "it mixes tokens by a convolution (layers.0.short)"


def test_a_layer_that_keeps_the_layout_to_itself_is_padded(llama: PreTrainedModel) -> None:
    replace(llama.model.layers[1], lambda own, x, layout=None, **settings: own(x, **settings))
    assert padded_because(llama) == "LlamaAttention does not hand to attention what its decoder is given"


def test_a_window_that_only_the_mask_knows_is_padded() -> None:
    assert "masked to the last 6 tokens" in str(padded_because(tiny("phimoe", torch.float32)))


def test_windows_of_masks() -> None:
    assert window_of(causal_mask_function) is None
    assert window_of(sliding_window_causal_mask_function(7)) == 7
    for chunk in (6, 64):
        with pytest.raises(UserError, match=r"by their positions|other than the last"):
            window_of(and_masks(causal_mask_function, chunked_overlay(chunk, torch.zeros(1, dtype=torch.long))))


@pytest.mark.parametrize("attention", [packed_attention, padded_attention])
@pytest.mark.parametrize("given", [{"position_bias": torch.ones(1)}, {"is_causal": False}, {"indices": torch.ones(1)}])
def test_an_argument_that_nobody_computes_is_refused_by_name(attention: Any, given: dict[str, Any]) -> None:
    heads = [torch.ones(1, 1, 2, 4)] * 3
    with pytest.raises(UserError, match=rf"Linear gives its attention `{next(iter(given))}`.*allowed: .*softcap"):
        attention(nn.Linear(1, 1), *heads, None, **given)


def test_an_argument_is_refused_before_training(llama: PreTrainedModel) -> None:
    replace(llama.model.layers[0].self_attn, lambda own, **settings: own(**settings, position_bias=torch.ones(1)))
    with pytest.raises(UserError, match="LlamaAttention gives its attention `position_bias`"):
        RoleModel(llama)


def test_a_model_that_sees_later_tokens_is_refused(llama: PreTrainedModel) -> None:
    llama.config.is_causal = False
    with pytest.raises(UserError, match="causal language models"):
        RoleModel(llama)


def test_logits_that_are_made_otherwise_are_refused(llama: PreTrainedModel) -> None:
    check_logits(llama)
    replace(llama, lambda own, **settings: scaled(own(**settings)))
    with pytest.raises(UserError, match=r"LlamaForCausalLM makes its logits in a way.*logits_scaling"):
        RoleModel(llama)


def scaled(output: Any) -> Any:
    output.logits = output.logits * 3
    return output


@pytest.mark.parametrize("scoring", [Scoring(cap=5.0), Scoring(sinks=torch.tensor([0.5, -1.0], dtype=torch.float64))])
def test_blocks_of_queries_are_one_softmax(scoring: Scoring) -> None:
    """Output and gradients, with more queries than a block has, behind keys of a prefix."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 300), (1, 310), (1, 310))
    query, key, value = rows = [
        torch.randn(1, h, n, 8, generator=generator, dtype=torch.float64).requires_grad_() for h, n in shapes
    ]
    seen = torch.ones(300, 310, dtype=torch.bool).tril(10)
    found = scored_attention(query, key, value, seen, 0.5, 0.0, scoring)
    expected = at_once(query, key, value, seen, scoring)
    assert (found - expected).abs().max() < 1e-12
    for got, wanted in zip(*(torch.autograd.grad(x.square().sum(), rows) for x in (found, expected)), strict=True):
        assert (got - wanted).abs().max() < 1e-10


def at_once(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scoring: Scoring) -> Tensor:
    scores = 0.5 * query @ key.mT
    if scoring.cap is not None:
        scores = scoring.cap * (scores / scoring.cap).tanh()
    weights = scores.exp() * seen
    sinks = 0 if scoring.sinks is None else scoring.sinks.exp()[None, :, None, None]
    return weights @ value / (weights.sum(dim=-1, keepdim=True) + sinks)


def test_a_capped_base_is_loaded_with_its_cap(tmp_path: Any) -> None:
    base = tiny("gemma2", torch.float32)
    base.save_pretrained(tmp_path)
    ids = torch.tensor([[5, 9, 33, 4, 17, 8, 80, 21]])
    assert (load_causal_lm(tmp_path, torch.float32)(ids).logits - base(ids).logits).abs().max() < 1e-5
