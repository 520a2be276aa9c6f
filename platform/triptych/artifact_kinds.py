"""Kinds of artifacts, in the registry and in `triptych.json`, and the words that older code has for them."""

from collections.abc import Mapping
from typing import Literal, get_args

from triptych.errors import UserError

ArtifactKind = Literal["policy", "reward_model", "classifier", "model", "dataset", "evaluation"]
"""A policy generates text, by any method; a reward model has a scalar head, a classifier a head of classes; a model is
whole, not an adapter; a data set is rows; an evaluation is figures of models, row by row."""
EVALUATION: ArtifactKind = "evaluation"
KINDS: tuple[ArtifactKind, ...] = get_args(ArtifactKind)
_FORMER = {"policy": "lora", "reward_model": "reward"}
_CURRENT = {former: kind for kind, former in _FORMER.items()}


def former_kind(kind: str) -> str:
    """The word of older code for a kind, so that it can read folders and registries that are written now."""
    return _FORMER.get(kind, kind)


def current_kind(word: str) -> str:
    """The kind that a word of older code, or of this, means; a word that neither knows stays as it is."""
    return _CURRENT.get(word, word)


def kind_fields(kind: str) -> dict[str, str]:
    """Fields of `triptych.json`: the kind, and in `kind` the word that older code looks for."""
    return {"kind": former_kind(kind), "artifact_kind": kind}


def kind_in(note: Mapping[str, object]) -> str | None:
    """The kind that the fields of a `triptych.json` name, whichever code wrote them; None where they name none."""
    word = note.get("artifact_kind", note.get("kind"))
    return None if word is None else current_kind(str(word))


def check_kind(kind: str) -> ArtifactKind:
    """The kind, if it is one; UserError with those that there are."""
    for known in KINDS:
        if kind == known:
            return known
    raise UserError(f"kind {kind[:80]!r}; allowed: {', '.join(KINDS)}")
