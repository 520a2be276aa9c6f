"""Rotary positions of the CPU engine, with heads on an axis of their own and without."""

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding

from triptych.vllm_plugin.cpu_rotary import forward_cpu

TOKENS, SIZE = 5, 32


@pytest.mark.parametrize("heads", [1, 2])
def test_every_head_is_turned_however_the_heads_are_laid_out(heads: int) -> None:
    with set_current_vllm_config(VllmConfig()):
        rotary = RotaryEmbedding(SIZE, SIZE, 64, 10000.0, True, torch.float32)
    torch.manual_seed(0)
    positions = torch.arange(TOKENS) + 3
    query, key = torch.randn(TOKENS, heads * SIZE), torch.randn(TOKENS, SIZE)
    wanted = rotary.forward_native(positions, query.clone(), key.clone())
    flat = forward_cpu(rotary, positions, query.clone(), key.clone())
    by_head = forward_cpu(rotary, positions, query.view(TOKENS, heads, SIZE).clone(), key.view(TOKENS, 1, SIZE).clone())
    for found, right in zip((*flat, *by_head), wanted * 2, strict=True):
        assert found is not None
        torch.testing.assert_close(found.flatten(1), right)
    assert by_head[0].shape == (TOKENS, heads, SIZE)
