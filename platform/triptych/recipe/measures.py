"""Measures of an evaluation: what each reads of a row, and the figures that it gives."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from triptych.recipe.base import Closed, Count

Better = Literal["lower", "higher"]
"""Direction in which a figure is better."""


class MeasureBase(Closed):
    """What all measures say of themselves."""

    rows: ClassVar[str | None]
    """Kind of the rows (data/sources.py, PARSERS); None: it brings its own."""
    generates: ClassVar[bool] = False
    """True if engines answer the rows."""
    reads_classes: ClassVar[bool] = False
    """True if it measures classifiers; otherwise models that write text."""

    name: str
    """Name of the measure."""

    def figures(self) -> dict[str, Better]:
        """Figures that it gives, the foremost first, and the direction in which each is better.

        None are named by a measure whose library knows them; see `MeasureTask.figures`.
        """
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


class VerifierMeasure(MeasureBase):
    """Generated answers compared with the right ones. Rows are prompts with `answer`: a text, a number, or a list."""

    rows = "answers"
    generates = True

    name: Literal["verifier"]
    match: Literal["number", "exact", "regex", "words"] = "number"
    """`number`: the last number of the answer equals the last of the right one (`#### 42` or `so 42.` are 42); `exact`:
    the texts are equal but for case and white space; `regex`: what `pattern` finds last is equal so; `words`: equal but
    for case, punctuation and articles, and F1 of words, as SQuAD's script has it."""
    pattern: str | None = Field(None, min_length=1)
    """Regular expression, for `match: regex`; its first group counts, if it has one."""
    pass_at: tuple[Count, ...] = ()
    """Numbers of answers k for pass@k: the chance that one of k answers to a prompt is right, without bias (Chen et al.
    2021, arXiv 2107.03374, equation 1)."""

    @model_validator(mode="after")
    def _pattern_where_it_is_read(self) -> "VerifierMeasure":
        if (self.match == "regex") != (self.pattern is not None):
            raise ValueError("`pattern` goes with `match: regex`: give both or neither")
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                raise ValueError(f"pattern {self.pattern!r} is no regular expression: {error}") from error
        return self

    def figures(self) -> dict[str, Better]:
        """Share of right answers, pass@k, F1 of words, share of answers that were cut by their length."""
        passed: dict[str, Better] = {f"pass_at_{k}": "higher" for k in self.pass_at}
        words: dict[str, Better] = {"f1": "higher"} if self.match == "words" else {}
        return {"accuracy": "higher", **passed, **words, "truncated": "lower"}


class JudgeMeasure(MeasureBase):
    """Generated answers scored by a reward model. Rows are prompts.

    `score` is its normalised score; `wins` is the share of prompts whose answer scores higher than the first model's,
    equal scores counted half.
    """

    rows = "prompts"
    generates = True

    name: Literal["judge"]
    reward: str
    """The reward stage, or a registered reward model."""

    @property
    def judged_by(self) -> str | None:
        return self.reward

    def figures(self) -> dict[str, Better]:
        """Mean score, wins over the first model, share of answers that were cut by their length."""
        return {"score": "higher", "wins": "higher", "truncated": "lower"}


class LmEvalMeasure(MeasureBase):
    """Tasks of lm-evaluation-harness that compare log-probabilities, with the harness's own prompts and metrics.

    The extra `lm-eval` has the harness. Figures are named `<task>_<metric>`; a task brings its rows, so the set has no
    `data`. Longer requests than `compute.batch.max_length` lose tokens on the left, as in the harness, and are counted.
    """

    rows = None

    name: Literal["lm_eval"]
    tasks: tuple[str, ...] = Field(min_length=1)
    """Names of tasks, or tags, which stand for several; `output_type` is `multiple_choice`, `loglikelihood` or
    `loglikelihood_rolling`."""
    limit: Count | None = None
    """Use only the first rows of each task."""
    num_fewshot: int | None = Field(None, ge=0)
    """Examples before each question; None: as many as the task says."""
    include_path: str | None = Field(None, min_length=1)
    """Folder of own tasks, as YAML; they go before the harness's of the same name."""


Measure = Annotated[
    LossMeasure | MultipleChoiceMeasure | ClassificationMeasure | VerifierMeasure | JudgeMeasure | LmEvalMeasure,
    Field(discriminator="name"),
]
"""A measure, told by its name."""
