"""Scores of texts that training never sees."""

import re
from collections.abc import Callable, Sequence

from triptych.errors import UserError


def vader_scores(texts: Sequence[str]) -> list[float]:
    """Sentiment of each text by VADER's lexicon and rules (Hutto & Gilbert 2014), from -1 to 1 (its `compound`)."""
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError as error:
        raise UserError("judge: vader needs the package vaderSentiment; pip install vaderSentiment==3.3.2") from error
    analyzer = SentimentIntensityAnalyzer()
    return [float(analyzer.polarity_scores(text)["compound"]) for text in texts]


JUDGES: dict[str, Callable[[Sequence[str]], list[float]]] = {"vader": vader_scores}
"""What a recipe's `judge` names."""


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams of words over all n-grams in `texts`, from 0 to 1 (Li et al. 2016, distinct-n)."""
    grams = []
    for text in texts:
        words = re.findall(r"[\w']+", text.lower())
        grams += [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


JUDGES = {"vader": vader_scores}
"""The names that a recipe may give."""
