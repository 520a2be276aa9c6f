"""Answers to questions, measured as SQuAD's evaluation script does (Rajpurkar et al. 2016, arXiv 1606.05250)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def answer_scores(answer: str, truths: Sequence[str]) -> tuple[float, float]:
    """Exact match (0 or 1) and F1 of words, each against the truth that it fits best."""
    words = _words(answer)
    wanted = [_words(truth) for truth in truths]
    return float(words in wanted), max(_f1(words, truth) for truth in wanted)


def _words(text: str) -> list[str]:
    """Lower case, without punctuation and English articles; words are what spaces part."""
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(words: list[str], truth: list[str]) -> float:
    common = (Counter(words) & Counter(truth)).total()
    return 2 * common / (len(words) + len(truth)) if common else 0.0
