"""Preference losses against hand-worked numbers, gradients, and cuts."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from triptych.objectives.preference import bradley_terry_loss, centering_loss, dpo_loss, kto_loss, rrhf_loss


def vector(*xs: float) -> Tensor:
    return torch.tensor(xs, dtype=torch.float64)


def numbers(*scalars: Tensor) -> list[float]:
    return [x.item() for x in scalars]


def draw(n: int, rows: int = 8) -> list[Tensor]:
    return list(torch.randn(n, rows, generator=torch.Generator().manual_seed(0), dtype=torch.float64))


@pytest.mark.parametrize(("gap", "expected"), [(0, 0.693147), (1, 0.313262), (2, 0.126928)])
def test_bradley_terry(gap: float, expected: float) -> None:
    loss, count, _ = bradley_terry_loss(vector(gap + 3), vector(3))
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert count == 1
    with_margin, _, _ = bradley_terry_loss(vector(gap + 3.5), vector(3), margin=vector(0.5))
    assert with_margin.item() == pytest.approx(expected, abs=1e-6)


def test_bradley_terry_metrics() -> None:
    loss, count, metrics = bradley_terry_loss(vector(1, 0, 2, 2), vector(0, 1, 0, 2))
    assert loss.item() == pytest.approx(0.3132617 + 1.3132617 + 0.1269280 + 0.6931472, abs=1e-6)
    assert numbers(count, metrics["correct"], metrics["score_gap"]) == [4, 2.5, 2]


def test_margins_are_asked_of_each_pair() -> None:
    loss, _, metrics = bradley_terry_loss(vector(3, 1), vector(1, 1), margin=vector(1, 2))
    assert loss.item() == pytest.approx(0.3132617 + 2.1269280, abs=1e-6)  # gaps less margins: 1, -2
    assert numbers(metrics["correct"], metrics["score_gap"]) == [1.5, 2]  # of the gaps themselves


def test_centering() -> None:
    chosen, rejected = vector(1, -2, 0.5), vector(2, 2, 0).requires_grad_()
    loss, count, _ = centering_loss(chosen, rejected)
    assert numbers(loss, count) == [9 + 0 + 0.25, 3]
    loss.backward()
    assert rejected.grad is not None
    assert rejected.grad.tolist() == [6, 0, 1]
    assert centering_loss(chosen.bfloat16(), rejected.bfloat16())[0].dtype == torch.float32


def test_bradley_terry_stays_finite() -> None:
    chosen = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss, _, _ = bradley_terry_loss(chosen, torch.zeros(2))
    loss.backward()
    assert loss.item() == 1e4
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [-1, 0]


def test_dpo_sigmoid() -> None:
    chosen, rejected, ref_chosen, ref_rejected = vector(-10), vector(-12), vector(-11), vector(-11)
    loss, count, metrics = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta=0.5)
    assert loss.item() == pytest.approx(0.313262, abs=1e-6)  # beta * h = 0.5 * (1 + 1)
    assert count == 1
    assert numbers(metrics["chosen_reward"], metrics["rejected_reward"], metrics["correct"]) == [0.5, -0.5, 1]


@pytest.mark.parametrize(
    ("smoothing", "expected"),
    [(0.0, 0.313262), (0.1, 0.9 * 0.313262 + 0.1 * 1.313262), (0.4, 0.6 * 0.313262 + 0.4 * 1.313262)],
)
def test_dpo_with_smoothed_labels(smoothing: float, expected: float) -> None:
    args = vector(-10), vector(-12), vector(-11), vector(-11)  # beta * h = 1
    loss, _, _ = dpo_loss(*args, beta=0.5, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_dpo_on_the_log_probabilities_of_trls_tests() -> None:
    """The four of `test_dpo_loss_alpha_div_f` in TRL's tests/test_dpo_trainer.py, and what beta 0.1 makes of them.

    Log-ratios are 1020 and 0.2 of the chosen answers, 699.9 and -0.3 of the rejected ones; so beta * h is 32.01, 0.05.
    """
    args = vector(410.0, 0.1), vector(810.5, 0.2), vector(-610.0, -0.1), vector(110.6, 0.5)
    loss, count, metrics = dpo_loss(*args, beta=0.1)
    assert loss.item() == pytest.approx(0 + 0.668460, abs=1e-6)
    assert numbers(count, metrics["correct"]) == [2, 2]
    assert metrics["chosen_reward"].item() == pytest.approx(102.02)
    assert metrics["rejected_reward"].item() == pytest.approx(69.96)
    robust, _, _ = dpo_loss(*args, beta=0.1, label_smoothing=0.1)
    assert robust.item() == pytest.approx(3.201 + 0.668460 + 0.1 * 0.05, abs=1e-6)


def test_dpo_ipo() -> None:
    args = vector(-10, -10), vector(-12, -12), vector(-11, -10), vector(-11, -11)  # h = 2, 1
    loss, _, _ = dpo_loss(*args, beta=0.5, kind="ipo")
    assert loss.item() == pytest.approx((2 - 1) ** 2 + (1 - 1) ** 2)


def test_dpo_starts_at_log_2_and_half_beta_inverse_squared() -> None:
    chosen, rejected = draw(2)
    assert dpo_loss(chosen, rejected, chosen, rejected, 0.1)[0].item() == pytest.approx(8 * math.log(2))
    assert dpo_loss(chosen, rejected, chosen, rejected, 0.1, "ipo")[0].item() == pytest.approx(8 * 25)


def test_dpo_refuses_an_unknown_kind() -> None:
    a, b, c, d = draw(4)
    with pytest.raises(ValueError, match="sigmoid or ipo"):
        dpo_loss(a, b, c, d, beta=0.1, kind="other")  # type: ignore[arg-type]


def test_gradients() -> None:
    a, b, c, d = draw(4)
    a.requires_grad_()
    b.requires_grad_()
    assert torch.autograd.gradcheck(lambda x, y: bradley_terry_loss(x, y, c.abs())[0], (a, b))
    assert torch.autograd.gradcheck(lambda x, y: centering_loss(x, y)[0], (a, b))
    for kind in ("sigmoid", "ipo"):
        assert torch.autograd.gradcheck(lambda x, y, kind=kind: dpo_loss(x, y, c, d, 0.3, kind)[0], (a, b))
    lengths, queries = torch.arange(1, 9), torch.arange(8) // 4
    assert torch.autograd.gradcheck(lambda x: rrhf_loss(x, lengths, c, queries)[0], a)


def test_reference_gets_no_gradient() -> None:
    a, b, c, d = (x.requires_grad_() for x in draw(4))
    dpo_loss(a, b, c, d, 0.1)[0].backward()
    assert a.grad is not None
    assert c.grad is d.grad is None


def test_pair_losses_do_not_depend_on_the_cut() -> None:
    a, b, c, d = draw(4)
    whole = bradley_terry_loss(a, b)[0], dpo_loss(a, b, c, d, 0.2)[0]
    for size in (1, 2, 4):
        cuts = [x.split(size) for x in (a, b, c, d)]
        torch.testing.assert_close(sum(bradley_terry_loss(x, y)[0] for x, y in zip(*cuts[:2], strict=True)), whole[0])
        torch.testing.assert_close(
            sum(dpo_loss(w, x, y, z, 0.2)[0] for w, x, y, z in zip(*cuts, strict=True)), whole[1]
        )


def test_no_pairs_is_a_zero_that_can_be_differentiated() -> None:
    empty = torch.zeros(0, requires_grad=True)
    loss, count, _ = bradley_terry_loss(empty, empty)
    loss.backward()
    assert numbers(loss, count) == [0, 0]


GOOD = torch.tensor([True, False, True, False])


def test_kto_weighs_answers_around_the_baseline() -> None:
    """Log-ratios 3, -1, 1, 1 and a baseline of 1: values at beta 0.5 are those of sigmoid(1), (1), (0), (0)."""
    logps, ref = vector(-7, -11, -9, -9), vector(-10, -10, -10, -10)
    loss, count, metrics = kto_loss(logps, ref, GOOD, vector(1)[0], 0.5, desirable_weight=1.0, undesirable_weight=1.5)
    assert loss.item() == pytest.approx(0.2689414 + 1.5 * 0.2689414 + 0.5 + 1.5 * 0.5, abs=1e-6)
    assert numbers(count, metrics["correct"]) == [4, 3]  # two stand on the baseline, and count half
    assert numbers(metrics["chosen_reward"], metrics["rejected_reward"]) == [0.5 * 4, 0.5 * 0]


def test_kto_clamps_its_baseline_at_0_and_gives_it_no_gradient() -> None:
    logps, ref = vector(-7, -11, -9, -9).requires_grad_(), vector(-10, -10, -10, -10)
    baseline = vector(-3, -3, -3, -3).requires_grad_()
    loss, _, _ = kto_loss(logps, ref, GOOD, baseline, 1.0)
    assert loss.item() == pytest.approx(0.047426 + 0.268941 + 0.268941 + 0.731059, abs=1e-6)
    loss.backward()
    assert baseline.grad is None
    slope = torch.tensor([0.045177, 0.196612, 0.196612, 0.196612], dtype=torch.float64)  # s(1 - s)
    torch.testing.assert_close(logps.grad, torch.where(GOOD, -slope, slope), atol=1e-6, rtol=0)


def test_kto_equals_trls_two_halves() -> None:
    """`kto_loss` of TRL's KTOTrainer: desirable and undesirable answers apart, then the mean of both."""
    logps, ref, kl = draw(3)
    good = torch.arange(8) % 3 == 0
    z = kl.mean().clamp(min=0)
    halves = 1 - torch.sigmoid(0.1 * ((logps - ref)[good] - z)), 1 - torch.sigmoid(0.1 * (z - (logps - ref)[~good]))
    loss, count, _ = kto_loss(logps, ref, good, kl.mean(), 0.1, 0.7, 1.3)
    torch.testing.assert_close(loss / count, torch.cat([0.7 * halves[0], 1.3 * halves[1]]).mean())


def test_rrhf_sums_over_ordered_pairs() -> None:
    logps, lengths = vector(-2, -6, -4), torch.tensor([2, 3, 4])  # p = -1, -2, -1
    scores, query = vector(0.1, 0.9, 0.5), torch.zeros(3, dtype=torch.long)
    loss, count, metrics = rrhf_loss(logps, lengths, scores, query)
    assert loss.item() == pytest.approx(1 + 1 + 0)  # 0 below 1, 2 below 1, 0 below 2
    assert numbers(count, metrics["pairs"], metrics["correct"]) == [1, 3, 0]


@pytest.mark.parametrize(("penalty", "expected"), [(0.0, 2.0), (1.0, 0.0), (0.5, 4 / 2 - 2 / 2**0.5)])
def test_rrhf_length_penalty(penalty: float, expected: float) -> None:
    loss, _, _ = rrhf_loss(vector(-2, -4), torch.tensor([2, 4]), vector(0, 1), torch.zeros(2), penalty)
    assert loss.item() == pytest.approx(expected)


def test_rrhf_compares_only_within_a_query_and_not_ties() -> None:
    logps, lengths = vector(0, -1, 0, -1), torch.ones(4)
    loss, count, metrics = rrhf_loss(logps, lengths, vector(0, 1, 0, 1), torch.tensor([7, 7, 3, 3]))
    assert numbers(loss, count, metrics["pairs"]) == [2, 2, 2]
    tied, _, metrics = rrhf_loss(logps, lengths, torch.ones(4), torch.zeros(4))
    assert numbers(tied, metrics["pairs"]) == [0, 0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), answers=st.integers(1, 5))
def test_rrhf_equals_the_double_loop_and_does_not_depend_on_the_cut_by_query(seed: int, answers: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n = 4 * answers
    logps = torch.randn(n, generator=generator, dtype=torch.float64)
    lengths, scores = (torch.randint(1, 5, (n,), generator=generator) for _ in range(2))
    queries = torch.arange(n) // answers
    p = (logps / lengths).tolist()
    loop = sum(
        max(0.0, p[i] - p[j]) for i in range(n) for j in range(n) if queries[i] == queries[j] and scores[i] < scores[j]
    )
    loss, count, _ = rrhf_loss(logps, lengths, scores, queries)
    assert loss.item() == pytest.approx(loop)
    rows = [queries == q for q in range(4)]
    parts = [rrhf_loss(logps[r], lengths[r], scores[r], queries[r]) for r in rows]
    torch.testing.assert_close(sum(part for part, _, _ in parts), loss, check_dtype=False)
    assert count == sum(float(c) for _, c, _ in parts) == 4
