"""Answers are measured as SQuAD measures them."""

import pytest

from triptych.data.answers import answer_scores


@pytest.mark.parametrize(
    ("answer", "truths", "exact", "f1"),
    [
        ("The Cat.", ["cat"], 1, 1),
        ("a black cat", ["the cat", "dog"], 0, 2 / 3),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("dog", ["cat", "Dog!"], 1, 1),
        ("theatre", ["tre"], 0, 0),
        ("the", ["a"], 1, 0),  # both normalise to nothing; SQuAD 1.1 gives such a pair no F1
    ],
)
def test_scores(answer: str, truths: list[str], exact: float, f1: float) -> None:
    assert answer_scores(answer, truths) == pytest.approx((exact, f1))
