"""KL estimators at known points, and the controller of the coefficient."""

import math

import pytest
import torch

from triptych.objectives.kl import AdaptiveKL, kl_penalty


@pytest.mark.parametrize(
    ("kind", "d", "expected"),
    [
        ("k1", 0.5, 0.5),
        ("k2", 0.5, 0.125),
        ("k3", 0.5, 0.106531),
        ("k1", -0.5, -0.5),
        ("k2", -0.5, 0.125),
        ("k3", -0.5, 0.148721),
        ("k1", 0.0, 0.0),
        ("k2", 0.0, 0.0),
        ("k3", 0.0, 0.0),
    ],
)
def test_estimators(kind: str, d: float, expected: float) -> None:
    logp, ref = torch.tensor([-1.0 + d], dtype=torch.float64), torch.tensor([-1.0], dtype=torch.float64)
    assert kl_penalty(logp, ref, kind).item() == pytest.approx(expected, abs=1e-6)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_estimators_are_unbiased(kind: str) -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.3, 0.5]).double()
    expected = (p * (p / q).log()).sum()
    torch.testing.assert_close((p * kl_penalty(p.log(), q.log(), kind)).sum(), expected)  # type: ignore[arg-type]


def test_k2_has_the_gradient_of_the_kl_and_k3_has_not() -> None:
    ref = torch.tensor([0.2, 0.3, 0.5]).double().log()
    logits = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64, requires_grad=True)
    logp = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((logp.exp() * (logp - ref)).sum(), logits, retain_graph=True)
    sampled = {}
    for kind in ("k2", "k3"):
        mean = (logp.detach().exp() * kl_penalty(logp, ref, kind)).sum()
        (sampled[kind],) = torch.autograd.grad(mean, logits, retain_graph=True)
    torch.testing.assert_close(sampled["k2"], exact)
    assert not torch.allclose(sampled["k3"], exact, atol=1e-2)


def test_k3_stays_finite_and_precise() -> None:
    far = torch.tensor([-1e4], requires_grad=True)
    kl_penalty(far, torch.zeros(1), "k3").sum().backward()
    assert far.grad is not None
    assert torch.isfinite(far.grad).all()
    assert kl_penalty(torch.tensor([1e-4]), torch.zeros(1), "k3").item() == pytest.approx(5e-9, rel=1e-2)


def test_low_precision_is_widened_before_the_difference() -> None:
    logp, ref = torch.tensor([-8.0625]).bfloat16(), torch.tensor([-8.0]).bfloat16()
    assert kl_penalty(logp, ref, "k2").dtype == torch.float32
    assert kl_penalty(logp, ref, "k1").item() == -0.0625


def test_unknown_estimator_is_refused() -> None:
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_penalty(torch.zeros(1), torch.zeros(1), "k4")  # type: ignore[arg-type]


def test_controller_clips_its_error() -> None:
    controller = AdaptiveKL(coef=0.2, target=0.1, horizon=100)
    assert controller.update(0.2, 10) == pytest.approx(0.204)
    assert AdaptiveKL(0.2, 0.1, 100).update(0.0, 10) == pytest.approx(0.196)
    assert AdaptiveKL(0.2, 0.1, 100).update(0.11, 10) == pytest.approx(0.2 * (1 + 0.1 * 0.1))


def test_controller_continues_from_its_state() -> None:
    whole, first = AdaptiveKL(0.2, 6.0, 100), AdaptiveKL(0.2, 6.0, 100)
    for kl in (3.0, 9.0):
        whole.update(kl, 16)
        first.update(kl, 16)
    second = AdaptiveKL(0.2, 6.0, 100)
    second.load_state_dict(first.state_dict())
    assert second.update(12.0, 16) == whole.update(12.0, 16)


@pytest.mark.parametrize("kl", [math.nan, math.inf])
def test_controller_refuses_what_would_poison_it(kl: float) -> None:
    controller = AdaptiveKL(0.2, 6.0, 100)
    with pytest.raises(ValueError, match="cannot follow"):
        controller.update(kl, 16)
    assert controller.coef == 0.2
