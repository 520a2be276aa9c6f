"""Log-probabilities of tokens against the definition, in low precision, and at positions that do not count."""

import math

import pytest
import torch

from triptych.objectives.language import chunked_logprobs, token_entropy, token_logprobs


def test_three_tokens_by_hand() -> None:
    """Logits at a position predict the label at the same position: labels are the inputs shifted by one."""
    ids = torch.tensor([[0, 2, 1]])
    probabilities = torch.tensor([[[0.1, 0.2, 0.7], [0.5, 0.25, 0.25], [0.9, 0.05, 0.05]]])
    out = token_logprobs(probabilities.log()[:, :-1], ids[:, 1:])
    torch.testing.assert_close(out, torch.tensor([[0.7, 0.25]]).log())


def test_equals_log_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 11, generator=generator, dtype=torch.float64) * 5
    labels = torch.randint(0, 11, (2, 5), generator=generator)
    for temperature in (1.0, 0.7):
        expected = (logits / temperature).log_softmax(-1).gather(-1, labels[..., None]).squeeze(-1)
        torch.testing.assert_close(token_logprobs(logits, labels, temperature), expected)


def test_is_stable_and_wide() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4]], dtype=torch.bfloat16)
    out = token_logprobs(logits, torch.tensor([0]))
    assert out.dtype == torch.float32
    assert out.item() == 0
    assert torch.isfinite(token_logprobs(logits, torch.tensor([2]))).all()


def test_bf16_logits_give_the_fp32_answer_of_their_values() -> None:
    logits = torch.randn(4, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.tensor([1, 2, 3, 4])
    assert torch.equal(token_logprobs(logits, labels), token_logprobs(logits.float(), labels))


@pytest.mark.parametrize("garbage", [1e6, float("nan")])
def test_positions_without_a_label_change_nothing(garbage: float) -> None:
    labels = torch.tensor([[-100, 2, 0, -100]])
    logits = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(0))
    logits[labels == -100] = garbage
    logits.requires_grad_()
    total = -token_logprobs(logits, labels).sum()
    total.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert not logits.grad[labels == -100].any()
    torch.testing.assert_close(total, -logits[0, 1:3].log_softmax(-1)[[0, 1], [2, 0]].sum())
    assert token_logprobs(logits, labels)[labels == -100].eq(0).all()


def test_no_label_at_all() -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    total = token_logprobs(logits, torch.full((2, 3), -100)).sum()
    total.backward()
    assert total.item() == 0


def test_gradient() -> None:
    logits = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([[0, 1, -100], [3, -100, 2]])
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, labels, 0.8), logits)
    assert torch.autograd.gradcheck(lambda x: token_entropy(x, labels, 0.8), logits)


@pytest.mark.parametrize("head_trains", [False, True])
@pytest.mark.parametrize("chunk", [None, 1, 3, 100])
def test_chunks_change_neither_values_nor_gradients(chunk: int | None, head_trains: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.nn.Linear(5, 11, bias=False).double().requires_grad_(head_trains)
    labels = torch.randint(0, 11, (7,), generator=generator)
    weights = torch.randn(7, generator=generator, dtype=torch.float64)

    def gradients(logprobs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad((weights * logprobs).sum(), [hidden, *(p for p in head.parameters() if head_trains)])

    whole = token_logprobs(head(hidden), labels, 0.7)
    parts = chunked_logprobs(head, hidden, labels, 0.7, chunk, head_trains=head_trains)
    torch.testing.assert_close(parts, whole)
    for found, expected in zip(gradients(parts), gradients(whole), strict=True):
        torch.testing.assert_close(found, expected)
    with torch.no_grad():
        torch.testing.assert_close(chunked_logprobs(head, hidden, labels, 0.7, chunk, head_trains=head_trains), whole)


def test_no_token_at_all() -> None:
    hidden = torch.randn(0, 5, requires_grad=True)
    chunked_logprobs(
        torch.nn.Linear(5, 3), hidden, torch.zeros(0, dtype=torch.int64), 1.0, 2, head_trains=False
    ).sum().backward()
    assert hidden.grad is not None


def test_entropy() -> None:
    labels = torch.tensor([0, 0, -100, 0])
    logits = torch.tensor([[0.0, 0, 0, 0], [100, 0, 0, 0], [math.nan] * 4, [0, -math.inf, 0, -math.inf]])
    expected = torch.tensor([math.log(4), 0, 0, math.log(2)])
    torch.testing.assert_close(token_entropy(logits, labels), expected, atol=1e-6, rtol=0)
