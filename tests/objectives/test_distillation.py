"""Divergences between teacher and student: by hand, against TRL's numbers, and their gradients in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from triptych.objectives.distillation import Divergence, Predictions, distillation_loss

log = math.log
HALF, QUARTER = Divergence("jsd"), Divergence("jsd", beta=0.25)
FORWARD, REVERSE = Divergence("forward_kl"), Divergence("reverse_kl")
EVERY = [FORWARD, REVERSE, HALF, QUARTER, Divergence("jsd", 0.9, 0.7), Divergence("reverse_kl", temperature=1.4)]

BY_HAND = [
    (FORWARD, 0.75 * log(1.5) + 0.25 * log(0.5)),
    (REVERSE, 0.5 * log(2 / 3) + 0.5 * log(2)),
    (HALF, 0.5 * (0.75 * log(6 / 5) + 0.25 * log(2 / 3)) + 0.5 * (0.5 * log(4 / 5) + 0.5 * log(4 / 3))),
    (QUARTER, 0.25 * (0.75 * log(4 / 3) + 0.25 * log(4 / 7)) + 0.75 * (0.5 * log(8 / 9) + 0.5 * log(8 / 7))),
]
"""Divergences of a student (1/2, 1/2) from a teacher (3/4, 1/4)."""

TRL = {
    (FORWARD, 1.0): 1.2165127173,
    (FORWARD, 2.0): 0.3350850062,
    (Divergence("jsd", 0.1), 1.0): 0.1000180776,
    (Divergence("jsd", 0.1), 2.0): 0.0294176373,
    (HALF, 1.0): 0.2406181863,
    (HALF, 2.0): 0.077277258,
    (Divergence("jsd", 0.9), 1.0): 0.089995617,
    (Divergence("jsd", 0.9), 2.0): 0.0277929696,
    (REVERSE, 1.0): 1.0565316797,
    (REVERSE, 2.0): 0.3116356488,
}
"""TRL's `GKDTrainer.generalized_jsd_loss` of the logits below, at betas of 0, 0.1, 0.5, 0.9 and 1."""
STUDENT = [[1.0, 2.0, 3.0, -1.0], [0.5, -0.5, 0.0, 2.0]]
TEACHER = [[3.0, 1.0, 0.5, 0.0], [0.0, 1.5, -2.0, 1.0]]


def doubles(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(hidden: Tensor) -> Tensor:
    return hidden


def of_logits(student: Tensor, teacher: Tensor, divergence: Divergence) -> Tensor:
    """The sum over tokens."""
    return distillation_loss(Predictions(student, same), Predictions(teacher, same), divergence)[0]


@pytest.mark.parametrize(("divergence", "expected"), BY_HAND, ids=str)
def test_two_tokens_by_hand(divergence: Divergence, expected: float) -> None:
    student, teacher = doubles([0.5, 0.5]).log(), doubles([0.75, 0.25]).log()
    assert of_logits(student, teacher, divergence).item() == pytest.approx(expected, rel=1e-12)
    assert of_logits(teacher, teacher, divergence).item() == pytest.approx(0.0, abs=1e-15)


@pytest.mark.parametrize(("divergence", "temperature"), TRL, ids=str)
def test_equals_trl(divergence: Divergence, temperature: float) -> None:
    found = Divergence(divergence.kind, divergence.beta, temperature)
    assert of_logits(doubles(*STUDENT), doubles(*TEACHER), found).item() / 2 == pytest.approx(
        TRL[divergence, temperature], abs=1e-10
    )


@pytest.mark.parametrize("divergence", EVERY, ids=str)
def test_the_slope_is_the_derivative_to_the_students_logits(divergence: Divergence) -> None:
    student, teacher = drawn(3, 7).requires_grad_(), 2 * drawn(3, 7, seed=1)
    assert torch.autograd.gradcheck(lambda logits: of_logits(logits, teacher, divergence), student)


def test_near_its_ends_the_generalised_divergence_has_the_slopes_of_the_two_kls() -> None:
    student, teacher = drawn(3, 7).log_softmax(-1), drawn(3, 7, seed=1).log_softmax(-1)
    near = 1e-6
    forward, reverse = Divergence("jsd", near), Divergence("jsd", 1 - near)
    torch.testing.assert_close(
        forward.slope(student, teacher) / near, FORWARD.slope(student, teacher), rtol=1e-4, atol=1e-6
    )
    torch.testing.assert_close(
        reverse.slope(student, teacher) / near, REVERSE.slope(student, teacher), rtol=1e-4, atol=1e-6
    )


def test_the_reverse_kl_has_the_slope_that_sampled_tokens_have_on_average() -> None:
    """Over tokens drawn from the student, (log P - log Q) of the drawn one, times the gradient of its log Q."""
    student, teacher = drawn(1, 7).requires_grad_(), drawn(1, 7, seed=1)
    (found,) = torch.autograd.grad(of_logits(student, teacher, REVERSE), student)
    logp = student.log_softmax(-1)
    credit = (teacher.log_softmax(-1) - logp).detach()
    (expected,) = torch.autograd.grad(-(logp.detach().exp() * credit * logp).sum(), student)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
@pytest.mark.parametrize("divergence", EVERY, ids=str)
def test_chunks_change_neither_values_nor_gradients(
    divergence: Divergence, chunk: int | None, head_trains: bool
) -> None:
    hidden, taught, weights = drawn(7, 5).requires_grad_(), drawn(7, 3, seed=1), drawn(7, seed=2)
    head = torch.nn.Linear(5, 11, bias=False).double().requires_grad_(head_trains)
    other = torch.nn.Linear(3, 11).double()

    def total(size: int | None, trains: bool) -> Tensor:
        student, teacher = Predictions(hidden, head, size, trains), Predictions(taught, other)
        total, count, metrics = distillation_loss(student, teacher, divergence, weights)
        assert (count.item(), metrics["divergence"].requires_grad) == (7, False)
        return total

    def gradients(total: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(total, [hidden, *(p for p in head.parameters() if head_trains)])

    plain = (weights * divergence.of(_logp(head, hidden, divergence), _logp(other, taught, divergence))).sum()
    parts = total(chunk, head_trains)
    torch.testing.assert_close(parts, plain)
    for found, expected in zip(gradients(parts), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(total(chunk, head_trains), plain)
    assert all(parameter.grad is None for parameter in other.parameters())


def _logp(head: Callable[[Tensor], Tensor], hidden: Tensor, divergence: Divergence) -> Tensor:
    logits: Tensor = head(hidden)
    return (logits / divergence.temperature).log_softmax(-1)


@pytest.mark.parametrize("divergence", [FORWARD, HALF], ids=str)
@pytest.mark.parametrize("head_trains", [False, True])
def test_a_token_that_neither_can_draw_adds_nothing(divergence: Divergence, head_trains: bool) -> None:
    student, teacher = drawn(2, 5), drawn(2, 5, seed=1)
    masked = [torch.cat([logits, torch.full((2, 1), -math.inf)], dim=1) for logits in (student, teacher)]
    masked[0].requires_grad_()
    total = distillation_loss(Predictions(masked[0], same, 1, head_trains), Predictions(masked[1], same), divergence)[0]
    torch.testing.assert_close(total, of_logits(student, teacher, divergence))
    (gradient,) = torch.autograd.grad(total, masked[0])
    assert gradient.isfinite().all()
    assert not gradient[:, -1].any()


def test_a_teacher_that_rules_a_token_out_has_an_infinite_reverse_kl_and_no_other() -> None:
    student, teacher = drawn(1, 3), doubles([0.3, 0.1, -math.inf])
    assert of_logits(student, teacher, REVERSE).item() == math.inf
    assert all(of_logits(student, teacher, one).isfinite() for one in (FORWARD, HALF, QUARTER))


def test_half_precision_is_widened() -> None:
    student, teacher = drawn(2, 50).bfloat16(), drawn(2, 50, seed=1).bfloat16()
    assert torch.equal(of_logits(student, teacher, HALF), of_logits(student.float(), teacher.float(), HALF))


def test_no_token_at_all() -> None:
    hidden = torch.zeros(0, 4, requires_grad=True)
    total = of_logits(hidden, torch.zeros(0, 4), HALF)
    total.backward()
    assert total.item() == 0
    assert hidden.grad is not None
