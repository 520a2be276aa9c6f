"""Entities are those of conlleval and seqeval, counted right over rows."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.objectives.spans import EntityCounts, Span, entities


def conlleval(tags: list[str]) -> list[Span]:
    """The chunks that the rules of conlleval.pl give, as seqeval's `get_entities` writes them out."""
    found, start = [], 0
    before, kind_before = "O", ""
    for place, tag in enumerate([*tags, "O"]):
        part, _, kind = tag.partition("-")
        if ends(before, part, kind_before, kind):
            found.append((kind_before, start, place))
        if starts(before, part, kind_before, kind):
            start = place
        before, kind_before = part, kind
    return found


def ends(before: str, part: str, kind_before: str, kind: str) -> bool:
    return (
        before in ("E", "S")
        or (before == "B" and part in ("B", "S", "O"))
        or (before == "I" and part in ("B", "S", "O"))
        or (before != "O" and kind_before != kind)
    )


def starts(before: str, part: str, kind_before: str, kind: str) -> bool:
    return (
        part in ("B", "S")
        or (before in ("E", "S", "O") and part in ("E", "I"))
        or (part != "O" and kind_before != kind)
    )


TAGS = ["O", *(f"{part}-{kind}" for part in "BIES" for kind in ("PER", "LOC"))]


@pytest.mark.slow
@given(st.lists(st.sampled_from(TAGS), max_size=12))
def test_entities_are_those_of_conlleval(tags: list[str]) -> None:
    assert entities(tags) == conlleval(tags)


def test_both_borders_and_the_type_must_be_right() -> None:
    counts = EntityCounts()
    counts.add(["B-PER", "I-PER", "O", "B-LOC"], ["B-PER", "O", "O", "B-LOC"])  # one cut short, one right
    counts.add(["B-LOC", "O", "B-ORG"], ["B-PER", "O", "O"])  # one of another type, one missed
    found = {name: right / whole for name, (right, whole) in counts.quotients().items() if whole}
    assert found == {
        "precision": pytest.approx(1 / 3),
        "recall": pytest.approx(1 / 4),
        "f1": pytest.approx(2 / 7),
        "precision_PER": 0.0,
        "recall_PER": 0.0,
        "f1_PER": 0.0,
        "precision_LOC": 1.0,
        "recall_LOC": 0.5,
        "f1_LOC": pytest.approx(2 / 3),
        "recall_ORG": 0.0,
        "f1_ORG": 0.0,
    }
    assert "f1_MISC" not in counts.quotients(), "a type that nobody has is not averaged"
