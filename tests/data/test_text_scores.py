"""Scores of texts: sentiment, distinct n-grams, and answers as SQuAD measures them."""

import sys

import pytest

from triptych.data.text_scores import answer_scores, distinct_n, vader_scores
from triptych.errors import UserError


def test_vader_tells_praise_from_blame() -> None:
    praise, blame, neither = vader_scores(["A wonderful, funny film.", "A terrible, boring mess.", "It is a film."])
    assert -1 <= blame < -0.5 < neither == 0 < 0.5 < praise <= 1


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(UserError, match="pip install vaderSentiment"):
        vader_scores(["x"])


def test_distinct_n() -> None:
    assert distinct_n(["a b c", "A b"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["a b c d"], 1) == 1
    assert distinct_n(["a", ""], 2) == 0


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
def test_answers_score_as_squad_scores_them(answer: str, truths: list[str], exact: float, f1: float) -> None:
    assert answer_scores(answer, truths) == pytest.approx((exact, f1))
