"""Advantages against hand-worked numbers, and what must not change them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triptych.objectives.advantages import discounted, gae, group_relative, leave_one_out, masked_moments, whiten


def row(*xs: float) -> Tensor:
    return torch.tensor([xs], dtype=torch.float64)


def close(actual: Tensor, expected: list[float], atol: float = 1e-9) -> None:
    torch.testing.assert_close(
        actual.flatten().double(), torch.tensor(expected, dtype=torch.float64), atol=atol, rtol=0
    )


DENSE = (row(1, 2, 3), row(0.5, 1, 1.5), torch.ones(1, 3))


@pytest.mark.parametrize(
    ("gamma", "lam", "advantages", "returns"),
    [
        (1, 1, [5.5, 4, 1.5], [6, 5, 3]),
        (0.5, 1, [2.25, 2.5, 1.5], [2.75, 3.5, 3]),
        (1, 0.5, [3.125, 3.25, 1.5], [3.625, 4.25, 3]),
        (1, 0.95, [5.22875, 3.925, 1.5], [5.72875, 4.925, 3]),
        (0.99, 0.95, [5.153952875, 3.89575, 1.5], [5.653952875, 4.89575, 3]),
    ],
)
def test_gae_dense(gamma: float, lam: float, advantages: list[float], returns: list[float]) -> None:
    a, r = gae(*DENSE, gamma, lam)
    close(a, advantages)
    close(r, returns)


def test_gae_skips_holes() -> None:
    rewards, values, mask = row(0, 0, 0, 1), row(0.5, 0.4, 0.3, 0.2), row(1, 0, 0, 1)
    close(gae(rewards, values, mask, 1, 0.95)[0], [0.46, 0, 0, 0.8])
    close(gae(rewards, values, mask, 1, 1)[0], [0.5, 0, 0, 0.8])


def test_gae_trailing_padding() -> None:
    close(gae(row(0, 1, 0, 0), row(0.5, 0.4, 0.3, 0.2), row(1, 1, 0, 0), 1, 0.95)[0], [0.47, 0.6, 0, 0])


def test_gae_bootstraps_only_rows_that_were_cut() -> None:
    rewards, values = row(1, 2).repeat(2, 1), row(0.5, 1).repeat(2, 1)
    advantages, _ = gae(rewards, values, torch.ones(2, 2), 0.5, 1, bootstrap=torch.tensor([4.0, 0.0]))
    close(advantages, [2.5, 3.0, 1.5, 1.0])


def test_gae_bootstrap_enters_at_the_last_valid_token() -> None:
    padded, _ = gae(row(1, 2, 9), row(0.5, 1, 9), row(1, 1, 0), 0.9, 0.8, bootstrap=torch.tensor([4.0]))
    short, _ = gae(row(1, 2), row(0.5, 1), row(1, 1), 0.9, 0.8, bootstrap=torch.tensor([4.0]))
    torch.testing.assert_close(padded[:, :2], short)


def test_gae_equals_its_definition_on_packed_rows() -> None:
    """Removing holes and padding first and taking the textbook recursion gives the same numbers."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 16, 12, generator=generator, dtype=torch.float64)
    mask = torch.rand(16, 12, generator=generator) < 0.6
    bootstrap = torch.randn(16, generator=generator, dtype=torch.float64)
    advantages, returns = gae(rewards, values, mask, 0.97, 0.9, bootstrap)
    for i in range(16):
        r, v = rewards[i][mask[i]].tolist(), [*values[i][mask[i]].tolist(), float(bootstrap[i])]
        deltas = [r[t] + 0.97 * v[t + 1] - v[t] for t in range(len(r))]
        expected = [sum((0.97 * 0.9) ** (k - t) * deltas[k] for k in range(t, len(r))) for t in range(len(r))]
        close(advantages[i][mask[i]], expected)
        close(returns[i][mask[i]], [a + b for a, b in zip(expected, v, strict=False)])


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_garbage_under_the_mask_changes_nothing(garbage: float) -> None:
    mask = row(0, 1, 0, 1, 0)
    clean = torch.arange(5, dtype=torch.float64)[None] * mask
    dirty = torch.where(mask.bool(), clean, garbage)
    for x, y in zip(gae(dirty, dirty, mask, 0.9, 0.8), gae(clean, clean, mask, 0.9, 0.8), strict=True):
        assert torch.equal(x, y)
    assert torch.equal(discounted(dirty, mask, 0.9), discounted(clean, mask, 0.9))
    assert torch.equal(whiten(dirty, mask), whiten(clean, mask))


@settings(max_examples=50)
@given(left=st.integers(0, 4), right=st.integers(0, 4), seed=st.integers(0, 1000))
def test_gae_does_not_depend_on_padding(left: int, right: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 3, 6, generator=generator)
    mask = torch.rand(3, 6, generator=generator) < 0.7
    plain = gae(rewards, values, mask, 0.99, 0.95)
    pad = torch.nn.functional.pad
    padded = gae(
        pad(rewards, (left, right), value=7.0),
        pad(values, (left, right), value=7.0),
        pad(mask, (left, right)),
        0.99,
        0.95,
    )
    for x, y in zip(plain, padded, strict=True):
        assert torch.equal(x, y[:, left : left + 6])


def test_gae_accepts_no_rows_and_rows_without_tokens() -> None:
    empty = torch.zeros(0, 4)
    assert gae(empty, empty, empty, 1, 1)[0].shape == (0, 4)
    blank, _ = gae(torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2, 3), 1, 1, bootstrap=torch.ones(2))
    assert torch.equal(blank, torch.zeros(2, 3))


def test_discounted() -> None:
    close(discounted(row(1, 2, 3), torch.ones(1, 3), 0.5), [2.75, 3.5, 3])
    close(discounted(row(0, 0, 0, 0, 2), row(1, 1, 0, 0, 1), 0.5), [0.5, 1, 0, 0, 2])


@settings(max_examples=50)
@given(seed=st.integers(0, 1000), shift=st.floats(-100, 100), scale=st.floats(1e-3, 1e3))
def test_whitened_values_have_mean_0_and_sample_variance_1(seed: int, shift: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4, 9, generator=generator, dtype=torch.float64) * scale + shift
    mask = torch.rand(4, 9, generator=generator) < 0.8
    mask[0, :2] = True
    out = whiten(x, mask)
    assert abs(out[mask].mean()) < 1e-6
    assert out[mask].std() == pytest.approx(1, abs=1e-5)
    assert not out[~mask].any()


def test_whitening_uses_the_sample_variance() -> None:
    close(whiten(row(1, 3), torch.ones(1, 2)), [-(0.5**0.5), 0.5**0.5])


def test_whitening_without_shift_keeps_the_mean() -> None:
    x, mask = row(1, 5, 9, 0), row(1, 1, 1, 0)
    out = whiten(x, mask, shift_mean=False)
    close(out, [4, 5, 6, 0])
    assert out[mask.bool()].mean() == x[mask.bool()].mean()


def test_whitening_with_summed_moments_does_not_depend_on_the_number_of_ranks() -> None:
    generator = torch.Generator().manual_seed(1)
    x, mask = torch.randn(8, 5, generator=generator) + 3, torch.rand(8, 5, generator=generator) < 0.7
    whole = whiten(x, mask)
    for ranks in (2, 4, 8):
        shards = list(zip(x.chunk(ranks), mask.chunk(ranks), strict=True))
        parts = [masked_moments(*shard) for shard in shards]
        n, total, squares = (torch.stack(moment).sum() for moment in zip(*parts, strict=True))
        joined = torch.cat([whiten(*shard, moments=(n, total, squares)) for shard in shards])
        torch.testing.assert_close(joined, whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("constant", [0.0, 0.1, -3.7, 1e4])
def test_whitening_a_constant_gives_zeros(constant: float) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.full((3, 7), constant, dtype=dtype)
        assert torch.equal(whiten(x, torch.ones(3, 7)), torch.zeros(3, 7, dtype=dtype))
        torch.testing.assert_close(whiten(x, torch.ones(3, 7), shift_mean=False), x)
    assert torch.equal(whiten(torch.tensor([[2.0]]), torch.ones(1, 1)), torch.zeros(1, 1))
    assert torch.equal(whiten(torch.ones(1, 2), torch.zeros(1, 2)), torch.zeros(1, 2))


@pytest.mark.parametrize(("eps", "value"), [(1e-6, 0.866024), (1e-4, 0.865875), (1e-9, 0.866025)])
def test_group_relative(eps: float, value: float) -> None:
    out = group_relative(row(1, 0, 0, 1)[0], torch.zeros(4, dtype=torch.long), eps)
    close(out, [value, -value, -value, value], atol=1e-6)


@pytest.mark.parametrize(("eps", "value"), [(1e-6, 0.6195), (1e-4, 0.0467), (1e-9, 0.7070)])
def test_group_relative_near_tie_is_the_business_of_eps(eps: float, value: float) -> None:
    close(group_relative(row(1, 1.00001)[0], torch.tensor([5, 5]), eps), [-value, value], atol=1e-4)


def test_group_relative_without_scale() -> None:
    close(group_relative(row(1, 0, 4)[0], torch.tensor([7, 7, 7]), 1e-6, scale=False), [-2 / 3, -5 / 3, 7 / 3])


def test_leave_one_out() -> None:
    close(leave_one_out(row(6, 3)[0], torch.tensor([1, 1])), [3, -3])
    close(leave_one_out(row(1, 0, 0, 1)[0], torch.tensor([1, 1, 1, 1])), [2 / 3, -2 / 3, -2 / 3, 2 / 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_group_without_spread_gives_exactly_zero(dtype: torch.dtype) -> None:
    scores = torch.tensor([0.1, 5.0, 0.1, 0.1, 7.0], dtype=dtype)
    groups = torch.tensor([3, 9, 3, 3, 1])  # one group of three equals, two of one
    for eps in (0.0, 1e-6):
        assert not group_relative(scores, groups, eps).any()
    assert not leave_one_out(scores, groups).any()


@settings(max_examples=50)
@given(seed=st.integers(0, 1000))
def test_groups_may_come_in_any_order(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, groups = torch.randn(12, generator=generator), torch.arange(12) % 3 * 10
    order = torch.randperm(12, generator=generator)
    for f in (lambda s, g: group_relative(s, g, 1e-6), leave_one_out):
        torch.testing.assert_close(f(scores[order], groups[order]), f(scores, groups)[order])
