"""Gradients of a beginning that many rows share, in 16 bits, against the same in 64."""

import pytest
import torch
from torch import Tensor, nn

from triptych.forward.attention import lay_out, packed_attention
from triptych.forward.gather import gather

ROWS, SHARED, OWN = 64, 20, 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_sum_is_rounded_once(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 7, generator=generator).to(dtype).requires_grad_()
    index = torch.tensor([3, 1, 1] * 500)
    outer = (torch.randn(4, 1500, generator=generator) + 0.5).to(dtype)
    taken = gather(x, 1, index)
    assert torch.equal(taken, x.index_select(1, index))
    (found,) = torch.autograd.grad(taken, x, outer)
    exact = torch.zeros(4, 7, dtype=torch.float64).index_add_(1, index, outer.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 5e-3), (torch.float16, 7e-4)])
def test_keys_and_values_of_a_shared_beginning(dtype: torch.dtype, tolerance: float) -> None:
    """64 rows go on from 20 tokens; added one by one, their gradients would be off by four times as much."""
    beginning = list(range(SHARED))
    ids = torch.tensor([beginning + [100 + row] * OWN for row in range(ROWS)])
    layout = lay_out(ids, torch.ones_like(ids))
    tokens = len(layout.ids)
    assert tokens == SHARED + ROWS * OWN

    def gradients(*given: Tensor) -> list[Tensor]:
        query, key, value, outer = given
        out, _ = packed_attention(nn.Module(), query, key.requires_grad_(), value.requires_grad_(), None, layout=layout)
        return [g[:, :, :SHARED] for g in torch.autograd.grad(out, (key, value), outer)]

    generator = torch.Generator().manual_seed(1)
    shapes = [(1, 4, tokens, 16), (1, 2, tokens, 16), (1, 2, tokens, 16), (1, tokens, 4, 16)]
    given = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    for found, exact in zip(gradients(*given), gradients(*(x.double() for x in given)), strict=True):
        assert (found.double() - exact).norm() <= tolerance * exact.norm()
