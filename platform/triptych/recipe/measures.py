"""Measures of an evaluation: what each reads of a row, and the figures that it gives."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from triptych.recipe.base import Closed

Better = Literal["lower", "higher"]
"""Direction in which a figure is better."""


class MeasureBase(Closed):
    """What all measures say of themselves."""

    rows: ClassVar[str]
    """Kind of the rows (data/sources.py, PARSERS)."""
    generates: ClassVar[bool] = False
    """True if engines answer the rows."""
    reads_classes: ClassVar[bool] = False
    """True if it measures classifiers; otherwise models that write text."""

    name: str
    """Name of the measure."""

    def figures(self) -> dict[str, Better]:
        """Figures that it gives, the foremost first, and the direction in which each is better."""
        return {}

    @property
    def judged_by(self) -> str | None:
        """The reward stage, or registered reward model, that scores answers; None: no model does."""
        return None


class LossMeasure(MeasureBase):
    """Cross-entropy of the assistant's tokens in nats a token, as training counts it, and perplexity, its exponential.

    Rows are chats, cut, split or left out as `compute.batch` says.
    """

    rows = "sft"

    name: Literal["loss"]

    def figures(self) -> dict[str, Better]:
        """Loss and perplexity."""
        return {"loss": "lower", "perplexity": "lower"}


class MultipleChoiceMeasure(MeasureBase):
    """The choice that the model finds most probable as its answer to the prompt, end of the turn included.

    Rows are a prompt in any of its shapes, `choices` (texts, or a mapping with `text` and `label`), and `answer`: the
    right one's index from 0, its label, or its text. `accuracy` compares log-probabilities; `accuracy_norm` divides
    them by the characters of the choice first, as lm-evaluation-harness does.
    """

    rows = "choices"

    name: Literal["multiple_choice"]

    def figures(self) -> dict[str, Better]:
        """Accuracy, by whole and by normalised log-probabilities."""
        return {"accuracy": "higher", "accuracy_norm": "higher"}


class ClassificationMeasure(MeasureBase):
    """The class that a classifier names. Rows are texts with labels."""

    rows = "texts"
    reads_classes = True

    name: Literal["classification"]

    def figures(self) -> dict[str, Better]:
        """Accuracy, and the mean F1 over classes."""
        return {"accuracy": "higher", "macro_f1": "higher"}


Measure = Annotated[
    LossMeasure | MultipleChoiceMeasure | ClassificationMeasure,
    Field(discriminator="name"),
]
"""A measure, told by its name."""
