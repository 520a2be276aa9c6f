"""Scores of generated texts that no training sees: sentiment, distinct n-grams, agreement with true answers."""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from triptych.errors import UserError

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def vader_scores(texts: Sequence[str]) -> list[float]:
    """Sentiment of each text by VADER's lexicon and rules (Hutto & Gilbert 2014), from -1 to 1 (its `compound`).

    Raises:
        UserError: the package vaderSentiment is not installed.
    """
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ModuleNotFoundError as error:
        raise UserError("judge: vader needs the package vaderSentiment; pip install vaderSentiment==3.3.2") from error
    analyzer = SentimentIntensityAnalyzer()
    return [float(analyzer.polarity_scores(text)["compound"]) for text in texts]


SCORERS: dict[str, Callable[[Sequence[str]], list[float]]] = {"vader": vader_scores}
"""Functions from texts to a score each, by the name that a recipe's `judge` gives."""


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """Distinct n-grams of words over all n-grams in `texts`, from 0 to 1 (Li et al. 2016, distinct-n)."""
    grams = []
    for text in texts:
        words = re.findall(r"[\w']+", text.lower())
        grams += [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def answer_scores(answer: str, truths: Sequence[str]) -> tuple[float, float]:
    """Exact match (0 or 1) and F1 of words, each against the truth that it fits best.

    The measures of SQuAD's evaluation script (Rajpurkar et al. 2016, arXiv 1606.05250).
    """
    words = _words(answer)
    wanted = [_words(truth) for truth in truths]
    return float(words in wanted), max(_f1(words, truth) for truth in wanted)


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and English articles; words are what spaces part."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(words: list[str], truth: list[str]) -> float:
    common = (Counter(words) & Counter(truth)).total()
    return 2 * common / (len(words) + len(truth)) if common else 0.0
