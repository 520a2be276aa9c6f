"""PPO's losses and importance weights: hand-worked tokens, gradients, invariances."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from triptych.objectives.masking import LossParts
from triptych.objectives.policy import importance_metrics, importance_weights, ppo_policy_loss, ppo_value_loss


def row(*xs: float) -> Tensor:
    return torch.tensor([xs], dtype=torch.float64)


ONE = torch.ones(1, 1)
OLD, NEW, ADVANTAGES = row(-1, -1, -3), row(-1.69314718, -1, -0.69741491), row(1, -1, -4)  # ratios 0.5, 1, 10


@pytest.mark.parametrize(("advantage", "expected"), [(1, -1.2), (-1, 1.3)])
def test_policy_loss_at_ratio_1_3(advantage: float, expected: float) -> None:
    loss, count, _ = ppo_policy_loss(row(1.3).log(), row(0), row(advantage), ONE, 0.2)
    assert loss.item() == pytest.approx(expected)
    assert count.item() == 1


def test_policy_loss_with_dual_clip() -> None:
    loss, count, metrics = ppo_policy_loss(NEW, OLD, ADVANTAGES, torch.ones(1, 3), 0.2, dual_clip=3.0)
    assert loss.item() == pytest.approx(12.5, abs=1e-6)
    assert count.item() == 3
    assert metrics["dual_clipped"] == 1
    each = [
        ppo_policy_loss(NEW, OLD, ADVANTAGES, torch.eye(3)[i : i + 1], 0.2, dual_clip=3.0)[0].item() for i in range(3)
    ]
    assert each == pytest.approx([-0.5, 1, 12], abs=1e-6)
    assert ppo_policy_loss(NEW, OLD, ADVANTAGES, torch.ones(1, 3), 0.2)[0].item() == pytest.approx(40.5, abs=1e-4)


def test_policy_loss_with_two_sided_clip() -> None:
    def loss(ratio: float, advantage: float) -> float:
        return ppo_policy_loss(row(ratio).log(), row(0), row(advantage), ONE, (0.2, 0.28))[0].item()

    assert loss(1.3, 1) == pytest.approx(-1.28)
    assert loss(0.7, -1) == pytest.approx(0.8)


def test_before_the_first_update_nothing_is_clipped() -> None:
    logp = torch.randn(4, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    advantages = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    loss, count, metrics = ppo_policy_loss(logp, logp.detach(), advantages, torch.ones(4, 6), 0.2)
    assert metrics["clipped"] == metrics["approx_kl"] == 0
    assert metrics["ratio"] == count == 24
    loss.backward()
    torch.testing.assert_close(logp.grad, -advantages)  # the plain policy gradient


def test_clipped_tokens_get_no_gradient() -> None:
    logp = row(1.3, 1.3, 0.7, 0.7).log().requires_grad_()
    loss, _, metrics = ppo_policy_loss(logp, torch.zeros(1, 4), row(1, -1, 1, -1), torch.ones(1, 4), 0.2)
    loss.backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, row(0, 1.3, -0.7, 0))
    assert metrics["clipped"] == 2


def test_importance_weights_scale_tokens_and_carry_no_gradient() -> None:
    weights = row(0.5, 2, 1).requires_grad_()
    logp = OLD.clone().requires_grad_()
    loss, _, _ = ppo_policy_loss(logp, OLD, ADVANTAGES, torch.ones(1, 3), 0.2, weights=weights)
    assert loss.item() == pytest.approx(-0.5 + 2 + 4)
    loss.backward()
    assert weights.grad is None
    torch.testing.assert_close(logp.grad, row(-0.5, 2, 4))


def test_a_ratio_out_of_range_stays_finite() -> None:
    logp = torch.tensor([[200.0, -200.0]], requires_grad=True)
    loss, _, _ = ppo_policy_loss(logp, torch.zeros(1, 2), torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2), 0.2)
    loss.backward()
    assert torch.isfinite(loss)
    assert logp.grad is not None
    assert torch.isfinite(logp.grad).all()


@pytest.mark.parametrize(
    ("value", "old", "target", "expected", "clipped"),
    [
        (1.0, 0.0, 1.0, 0.32, 1),  # clipped to 0.2: half of 0.8^2
        (1.0, 0.0, 0.0, 0.5, 0),  # the unclipped error is the larger one
        (0.1, 0.0, 1.0, 0.405, 0),
    ],
)
def test_value_loss(value: float, old: float, target: float, expected: float, clipped: int) -> None:
    loss, count, metrics = ppo_value_loss(row(value), row(old), row(target), ONE, clip=0.2)
    assert loss.item() == pytest.approx(expected)
    assert count.item() == 1
    assert metrics["clipped"] == clipped
    assert ppo_value_loss(row(value), row(old), row(target), ONE)[0].item() == pytest.approx((value - target) ** 2 / 2)


def policy(x: Tensor, fixed: list[Tensor], mask: Tensor) -> LossParts:
    return ppo_policy_loss(x, fixed[0], fixed[1], mask, (0.2, 0.3), 3.0, fixed[2].abs())


def value(x: Tensor, fixed: list[Tensor], mask: Tensor) -> LossParts:
    return ppo_value_loss(x, fixed[0], fixed[1], mask, 0.2)


def make(seed: int = 0) -> tuple[Tensor, list[Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, *fixed = torch.randn(4, 8, 5, generator=generator, dtype=torch.float64)
    return x, fixed, torch.rand(8, 5, generator=generator) < 0.7


LOSSES = pytest.mark.parametrize("loss", [policy, value])
Loss = Callable[[Tensor, list[Tensor], Tensor], LossParts]


@LOSSES
def test_gradient(loss: Loss) -> None:
    x, fixed, mask = make()
    assert torch.autograd.gradcheck(lambda x: loss(x, fixed, mask)[0], x.requires_grad_())


@LOSSES
@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("-inf")])
def test_garbage_under_the_mask_changes_neither_loss_nor_gradient(loss: Loss, garbage: float) -> None:
    x, fixed, mask = make()
    results = []
    for fill in (0.0, garbage):
        leaf = torch.where(mask, x, fill).requires_grad_()
        total, count, metrics = loss(leaf, [torch.where(mask, f, fill) for f in fixed], mask)
        (gradient,) = torch.autograd.grad(total, leaf)
        results.append([total, count, gradient, *metrics.values()])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)


@LOSSES
@pytest.mark.parametrize("rows", [1, 2, 4, 8])
def test_the_cut_into_micro_batches_does_not_matter(loss: Loss, rows: int) -> None:
    """Sum over global count gives the same gradient, loss and metrics for any cut, an empty piece included."""
    x, fixed, mask = make()
    mask[2] = False
    leaf, whole_leaf = x.clone().requires_grad_(), x.clone().requires_grad_()
    whole, n, metrics = loss(whole_leaf, fixed, mask)
    (whole / n).backward()
    pieces = [slice(i, i + rows) for i in range(0, 8, rows)] + [slice(0, 0)]
    parts = [loss(leaf[s], [f[s] for f in fixed], mask[s]) for s in pieces]
    assert sum(float(count) for _, count, _ in parts) == n
    for part, _, _ in parts:
        (part / n).backward()
    torch.testing.assert_close(leaf.grad, whole_leaf.grad)
    for key in metrics:
        torch.testing.assert_close(sum(m[key] for _, _, m in parts), metrics[key])


@LOSSES
def test_low_precision_is_summed_in_fp32(loss: Loss) -> None:
    x = torch.zeros(1, 4096, dtype=torch.bfloat16, requires_grad=True)
    ones = torch.ones_like(x).detach()
    total, count, _ = loss(x, [torch.zeros_like(ones), ones, ones], torch.ones(1, 4096))
    assert total.dtype == torch.float32
    assert abs(total.item()) == (4096 if loss is policy else 2048)
    assert count == 4096


LOG_RATIOS = row(0.5, -0.5, 1)


def weights_of(log_ratios: Tensor, mask: Tensor | None = None, **kwargs: object) -> list[float]:
    mask = torch.ones_like(log_ratios) if mask is None else mask
    return importance_weights(log_ratios, torch.zeros_like(log_ratios), mask, **kwargs).flatten().tolist()  # type: ignore[arg-type]


def test_token_weights_are_truncated() -> None:
    assert weights_of(LOG_RATIOS) == pytest.approx([1.6487213, 0.6065307, 2.0])


def test_sequence_weights_are_the_product_over_valid_tokens() -> None:
    assert weights_of(LOG_RATIOS, level="sequence", cap=5.0) == pytest.approx([2.7182818] * 3)
    assert weights_of(row(1, 1, 1), level="sequence", cap=5.0) == [5.0] * 3
    assert weights_of(LOG_RATIOS, row(1, 0, 1), level="sequence", cap=5.0) == pytest.approx([4.4816891, 0, 4.4816891])


def test_a_floor_drops_what_is_out_of_bounds() -> None:
    raw, mask = row(0.4, 0.8, 6), torch.ones(1, 3)
    weights = importance_weights(raw.log(), torch.zeros(1, 3), mask, cap=5.0, floor=0.5)
    torch.testing.assert_close(weights, row(0, 0.8, 0))
    assert weights.std(correction=0).item() == pytest.approx(0.3771236)
    metrics = importance_metrics(raw.log(), torch.zeros(1, 3), weights, mask)
    assert metrics["bounded"].item() / 3 == pytest.approx(2 / 3)
    assert (metrics["weight"] ** 2 / (3 * metrics["weight_sq"])).item() == pytest.approx(1 / 3)


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("floor", [None, 0.5])
def test_every_mode_respects_its_bounds(level: str, floor: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    old = (torch.randn(64, 40, generator=generator) * 20).requires_grad_()
    weights = importance_weights(
        old,
        torch.zeros(64, 40),
        torch.rand(64, 40, generator=generator) < 0.8,
        level=level,  # type: ignore[arg-type]
        cap=3.0,
        floor=floor,
    )
    assert weights.max() <= 3.0
    assert ((weights == 0) | (weights >= (floor or 0))).all()
    assert not weights.requires_grad


def test_masked_tokens_have_weight_zero_whatever_stands_there() -> None:
    mask = row(1, 0, 1)
    for level in ("token", "sequence"):
        dirty = weights_of(torch.where(mask.bool(), LOG_RATIOS, torch.nan), mask, level=level)
        assert dirty == weights_of(LOG_RATIOS * mask, mask, level=level)
        assert dirty[1] == 0


def test_importance_metrics() -> None:
    mask = row(1, 1, 1, 0)
    old = row(0.5, -0.5, 1, torch.nan)
    weights = importance_weights(old, torch.zeros(1, 4), mask)
    metrics = importance_metrics(old, torch.zeros(1, 4), weights, mask)
    assert metrics["bounded"] == 1
    assert metrics["logprob_gap"].item() == pytest.approx(2.0)
    assert metrics["weight"].item() == pytest.approx(1.6487213 + 0.6065307 + 2)


def test_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match="token or sequence"):
        weights_of(LOG_RATIOS, level="word")
