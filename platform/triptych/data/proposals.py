"""Proposals for `columns`: names that a file may have for the columns that a row lacks."""

import difflib
from functools import lru_cache

_ALSO: dict[str, tuple[str, ...]] = {
    "prompt": (
        "question",
        "query",
        "instruction",
        "user",
        "human",
        "problem",
        "request",
        "input",
        "source",
        "q",
        "src",
    ),
    "response": (
        "answer",
        "completion",
        "output",
        "reply",
        "assistant",
        "solution",
        "ground_truth",
        "target",
        "gpt",
        "a",
        "tgt",
    ),
    "chosen": ("preferred", "accepted", "better", "winner", "win", "positive", "good", "chosen_response"),
    "rejected": ("dispreferred", "worse", "loser", "lose", "negative", "bad", "rejected_response"),
    "answers": ("responses", "completions", "candidates", "outputs", "choices"),
    "scores": ("ratings", "rewards"),
    "text": ("sentence", "review", "content", "comment", "document", "body", "tweet", "message", "utterance", "input"),
    "label": ("sentiment", "class", "category", "intent", "polarity", "rating", "stars", "target", "y"),
    "tokens": ("words", "token", "word", "sentence", "text"),
    "tags": ("ner_tags", "ner", "labels", "tag", "pos_tags", "entities", "label"),
    "question": ("query", "prompt", "q"),
    "context": ("passage", "paragraph", "document", "text"),
    "messages": ("chat", "dialog", "dialogue", "turns"),
}
_CLOSE = 0.75


@lru_cache(maxsize=64)
def proposal(missing: tuple[str, ...], has: tuple[str, ...]) -> str:
    """`; perhaps columns: {ours: theirs, ...}`, where each missing column has one that may be meant; else nothing."""
    found: dict[str, str] = {}
    for ours in missing:
        theirs = _likely(ours, [name for name in has if name not in found.values()])
        if theirs is not None:
            found[ours] = theirs
    left = [name for name in has if name not in found.values()]
    unknown = [ours for ours in missing if ours not in found]
    if len(unknown) == 1 and len(left) == 1 and left[0] not in _ALSO:
        found[unknown[0]] = left[0]
    if len(found) < len(missing):
        return ""
    return "; perhaps columns: {" + ", ".join(f"{ours}: {found[ours]}" for ours in missing) + "}"


def _likely(ours: str, names: list[str]) -> str | None:
    """The first of the names that is ours in another case, a word for it, one that holds it, or one nearly like it."""
    plain = {name.lower().strip().replace(" ", "_").replace("-", "_"): name for name in names}
    words = (ours, *_ALSO.get(ours, ()))
    for word in words:
        if word in plain:
            return plain[word]
    for word in words:
        inside = [name for low, name in plain.items() if len(word) > 2 and word in low.split("_")]
        if inside:
            return inside[0]
    near = difflib.get_close_matches(ours, plain, n=1, cutoff=_CLOSE)
    return plain[near[0]] if near else None
