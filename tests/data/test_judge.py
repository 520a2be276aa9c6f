"""The scores that training never sees."""

import sys

import pytest

from triptych.data.judge import distinct_n, vader_scores
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
