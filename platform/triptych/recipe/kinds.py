"""Stage kinds that learn from rows (chats, labels, preference pairs), and the table of all kinds."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from triptych.recipe.base import Count, Fraction, NoEffect, Tagged
from triptych.recipe.errors import Fault
from triptych.recipe.evaluation import Evaluation
from triptych.recipe.method import Method, names_of, trains_base
from triptych.recipe.preference import PREFERENCE_KINDS
from triptych.recipe.rl import Rl
from triptych.recipe.spec import Path
from triptych.recipe.stage import (
    CLASSIFIER,
    REWARD,
    HeadSpec,
    Known,
    Output,
    Reference,
    RoleSpec,
    StageBase,
    member_roles,
)
from triptych.recipe.start import head_refusal, members_refusal, method_refusal, whole_refusal, whole_start_refusal
from triptych.recipe.supervised import ADAPTERS, PolicyStage, SupervisedStage
from triptych.recipe.work_shape import WorkShape

_OF_ENTITY = re.compile("[BIES]-.+")
_ENTITY_METRICS = ("precision", "recall", "f1")


class Sft(PolicyStage):
    """Supervised fine-tuning on chats; the loss counts the assistant's tokens only."""

    runner = "triptych.stages.supervised.sft:run"
    task = "triptych.train.tasks.language:TASK"
    examples = "triptych.data.examples:chats"
    rows = "sft"

    kind: Literal["sft"]

    def reports(self) -> tuple[str, ...]:
        """Held-out loss."""
        return ("loss",)


class HeadedStage(SupervisedStage):
    """A stage that trains a head, which reads the model's hidden states."""

    head: Literal["new"] | None = None
    """Head of a stage with `from`: new, or null for the head of what it goes on from, where that has one."""

    @model_validator(mode="after")
    def _head_of_start(self) -> "HeadedStage":
        if self.head is not None and self.start is None:
            raise ValueError("head: new is for a stage with `from`; allowed: with `from`, or no head")
        return self

    @property
    def keeps_head(self) -> bool:
        """True if training goes on with the head of what it goes on from."""
        return self.head is None

    def refusal(self, field: Path, known: Known) -> Fault | None:
        """Reason why training cannot go on from this adapter, or with its head."""
        if self.keeps_head:
            return super().refusal(field, known) or head_refusal(self.kind, self.output, self.classes, known)
        found = whole_refusal(known) or (None if self.inherited else method_refusal(self.method, known))
        return found or members_refusal(self.copies, known, new_head=True)


class LabellingStage(HeadedStage):
    """A stage that trains a head of classes."""

    @model_validator(mode="after")
    def _whole_rows(self) -> "LabellingStage":
        if self.train.batch.overlength == "split":
            raise ValueError("train.batch.overlength: split is for chats; allowed here: truncate, drop")
        return self

    @property
    def output(self) -> Output:
        return "classifier"

    def roles(self, stages: Mapping[str, StageBase]) -> tuple[RoleSpec, ...]:
        """The classifier."""
        return (self._role(CLASSIFIER, HeadSpec(len(self.classes), bias=False)),)


def _each_once(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(labels)) < len(labels):
        raise ValueError(f"each class once, not {', '.join(labels)}")
    return labels


Labels = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_each_once)]


class Classification(LabellingStage):
    """A head that names the class of a text."""

    runner = "triptych.stages.supervised.classification:run"
    task = "triptych.train.tasks.classification:TASK"
    examples = "triptych.data.examples:texts"
    rows = "texts"

    kind: Literal["classification"]
    labels: Labels
    """The classes, in the order of the head's outputs."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels

    def row_labels(self) -> tuple[str, ...]:
        """The classes."""
        return self.labels

    def reports(self) -> tuple[str, ...]:
        """Loss, accuracy and F1, by class and averaged."""
        return ("loss", "accuracy", "macro_f1", *(f"f1_{label}" for label in self.labels))


class TokenClassification(LabellingStage):
    """A head that names the tag of every word: entities, parts of speech."""

    runner = "triptych.stages.supervised.token_classification:run"
    task = "triptych.train.tasks.token_classification:TASK"
    examples = "triptych.data.examples:words"
    rows = "tags"

    kind: Literal["token_classification"]
    labels: Labels
    """The tags, in the order of the head's outputs. Entities are marked by `O` and by `B-`, `I-`, `E-`, `S-` before a
    type (BIO, BIOES), and are measured whole."""
    separator: str = " "
    """Text between two words: a space, or nothing where a script has none."""

    @model_validator(mode="after")
    def _tags_of_one_kind(self) -> "TokenClassification":
        odd = [label for label in self.labels if label != "O" and not _OF_ENTITY.fullmatch(label)]
        if odd and self.mark_entities:
            raise ValueError(
                f"labels: {', '.join(odd)} beside tags of entities; allowed: O, and B-, I-, E- or S- before a type; "
                "or none of these"
            )
        return self

    @property
    def mark_entities(self) -> bool:
        """True if the tags are those of entities (B-, I-, ...)."""
        return any(_OF_ENTITY.fullmatch(label) for label in self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.labels

    def row_labels(self) -> tuple[str, ...]:
        """The classes."""
        return self.labels

    def reports(self) -> tuple[str, ...]:
        """Loss and accuracy; for entities also precision, recall and F1, over all and by type."""
        if not self.mark_entities:
            return ("loss", "accuracy")
        types = sorted({label.partition("-")[2] for label in self.labels if label != "O"})
        by_type = (f"{metric}_{entity}" for metric in _ENTITY_METRICS for entity in types)
        return ("loss", "accuracy", *_ENTITY_METRICS, *by_type, "macro_f1")


class QuestionAnswering(LabellingStage):
    """A head that finds where in a context the answer to a question starts and ends."""

    runner = "triptych.stages.supervised.question_answering:run"
    task = "triptych.train.tasks.question_answering:TASK"
    examples = "triptych.data.examples:questions"
    rows = "questions"

    kind: Literal["question_answering"]
    max_answer_tokens: Count = 30
    """Longer spans are not answers (30: as BERT's on SQuAD, Devlin et al. 2019)."""

    @property
    def classes(self) -> tuple[str, ...]:
        return ("start", "end")

    def reports(self) -> tuple[str, ...]:
        """Loss, exact match and F1 of words."""
        return ("loss", "exact_match", "f1")


class Reward(HeadedStage):
    """Reward model on preference pairs (Bradley-Terry)."""

    runner = "triptych.stages.supervised.reward:run"
    task = "triptych.train.tasks.reward:TASK"
    examples = "triptych.data.examples:pairs"
    rows = "pairs"
    whole_with_head = True

    kind: Literal["reward"]
    min_accuracy: NoEffect[Fraction] = 0.0
    """Pairwise accuracy on held-out pairs below which the stage fails and nothing is registered."""
    margin: bool = False
    """Ask for a score gap of each pair's `margin` (Touvron et al. 2023, arXiv 2307.09288, section 3.2.2)."""
    centering: float = Field(0.0, ge=0)
    """Coefficient of the squared sum of a pair's scores (Eisenstein et al. 2023, arXiv 2312.09244)."""
    members: int = Field(1, ge=1, le=8)
    """Reward models of an ensemble; the score is their mean."""

    @model_validator(mode="after")
    def _gate_is_measured(self) -> "Reward":
        if self.min_accuracy > 0 and self.data.heldout is None:
            raise ValueError("min_accuracy is measured on `data.heldout`, which is not given")
        return self

    @property
    def output(self) -> Output:
        return "reward_model"

    def faults(self, stages: Mapping[str, StageBase]) -> Iterator[Fault]:
        """An ensemble of whole models."""
        if fault := self._ensemble_fault():
            yield fault

    def _ensemble_fault(self) -> Fault | None:
        if self.members == 1 or not trains_base(self.method):
            return None
        return Fault(
            ("members",),
            f"{self.members}, and {names_of(self.method)} makes a whole model of each, of which one alone is "
            "trained at a time; allowed: 1, or a method that makes adapters",
        )

    def start_reference(self, ref: str) -> Reference:
        """As of other kinds, or a whole model, whose weights the method `full` or `freeze` goes on with."""
        return Reference(("from",), ref, (*ADAPTERS, "model"))

    def refusal(self, field: Path, known: Known) -> Fault | None:
        """Reason why training cannot go on from this adapter or whole model."""
        if known.kind != "model":
            return super().refusal(field, known)
        found: Any = self.inheriting(known)
        return whole_start_refusal(found.method, known) or found._ensemble_fault()

    @property
    def copies(self) -> int:
        """Members of the ensemble."""
        return self.members

    def output_method(self, stages: Mapping[str, StageBase]) -> Method:
        """Its own, be the reward model an adapter or a whole model."""
        return self.method

    def shortfall(self, metrics: Mapping[str, float]) -> str | None:
        """Reason why a reward model of this accuracy on held-out pairs may not be used; None: it may."""
        accuracy = metrics.get("heldout_accuracy", 0.0)
        if accuracy >= self.min_accuracy:
            return None
        return f"accuracy {accuracy:.3f} on held-out pairs is below min_accuracy {self.min_accuracy}"

    def roles(self, stages: Mapping[str, StageBase]) -> tuple[RoleSpec, ...]:
        """The members of the ensemble, each with a scalar head."""
        return tuple(self._role(name, HeadSpec(1, bias=True)) for name in member_roles(REWARD, self.members))

    def shape(self) -> WorkShape:
        """Amounts of an optimiser step; a row is a pair of sequences."""
        batch = self.train.batch
        return WorkShape(batch.max_length, batch.max_length, "train.batch.max_length", batch.rows, sequences_per_row=2)

    def reports(self) -> tuple[str, ...]:
        """Loss, pairwise accuracy and margin; for an ensemble also its disagreement."""
        return ("loss", "accuracy", "margin", *(("disagreement",) if self.members > 1 else ()))


KINDS: dict[str, type[StageBase]] = {
    "sft": Sft,
    "classification": Classification,
    "token_classification": TokenClassification,
    "question_answering": QuestionAnswering,
    "reward": Reward,
    **PREFERENCE_KINDS,
    "rl": Rl,
    "evaluation": Evaluation,
}
"""Kind -> model of its fields. Everything else about a kind is asked of the model; its training is in `stages`."""

Stage = Annotated[StageBase, Tagged("kind", KINDS)]
"""A stage of any kind in the table."""
