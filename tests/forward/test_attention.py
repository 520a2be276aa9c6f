"""Attention over a layout, whichever rows it takes at once, against each row by itself."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from triptych.forward.attention import Layout, lay_out, packed_attention

HEADS, KEY_HEADS, WIDTH = 4, 2, 8
ROWS = [[1, 2, 3], [1, 2, 4, 5], [6], [7] * 50, [8] * 90, [8] * 40 + [9] * 100, [10] * 200, [11, 12]]
"""Short ones that are taken at once, two that share a beginning, and long ones."""


@pytest.fixture
def layout() -> Layout:
    width = max(map(len, ROWS))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in ROWS])
    return lay_out(ids, (ids > 0).long())


def inputs(tokens: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, KEY_HEADS, KEY_HEADS)
    return [torch.randn(1, h, tokens, WIDTH, generator=generator).to(dtype).requires_grad_() for h in heads]


def by_row(rows: list[Tensor], layout: Layout, window: int | None) -> Tensor:
    """[1, N, H, D], computed for each row from its own keys and a mask."""
    query, key, value = rows
    keys = torch.arange(key.shape[2]) if layout.keys is None else layout.keys
    out = []
    for q, places in zip(query.split(layout.new, 2), keys.split(layout.whole), strict=True):
        behind = torch.arange(len(places))[-q.shape[2] :, None] - torch.arange(len(places))
        mask = (behind >= 0) & (behind < (window or 10**9))
        k, v = key[:, :, places], value[:, :, places]
        out.append(F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True))
    return torch.cat(out, dim=2).transpose(1, 2)


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_rows_taken_at_once_do_not_see_each_other(layout: Layout, dtype: torch.dtype, window: int | None) -> None:
    """Output and gradients; in bfloat16 against the same numbers in float64."""
    rows = inputs(len(layout.ids), dtype)
    outer = torch.randn(1, len(layout.ids), HEADS, WIDTH, generator=torch.Generator().manual_seed(1)).to(dtype)
    query, key, value = rows
    out, _ = packed_attention(nn.Module(), query, key, value, None, layout=layout, sliding_window=window)
    wide = [row.detach().double().requires_grad_() for row in rows]
    expected = by_row(wide, layout, window)
    found = [out, *torch.autograd.grad(out, rows, outer)]
    exact = [expected, *torch.autograd.grad(expected, wide, outer.double())]
    tolerance = 1e-12 if dtype == torch.float64 else 2e-2
    for got, wanted in zip(found, exact, strict=True):
        assert (got.double() - wanted).abs().max() <= tolerance * wanted.abs().max()
