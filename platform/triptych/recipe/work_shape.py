"""Amounts of work of a stage, at the limits that the recipe sets: what plans and measurements reckon with."""

from dataclasses import dataclass

Shares = tuple[float, float, float]
ACTIVATIONS: Shares = (0.4, 1.0, 1.4)
"""Low, expected and high share of the activations of a micro-batch whose data are not known: it may be half empty."""
ANSWER_SHARE: Shares = (0.1, 0.5, 1.0)
"""Low, expected and high share of its tokens that are learned where the data are not known."""


@dataclass(frozen=True)
class SamplingShape:
    """Amounts of an optimiser step that samples its rows itself."""

    prompts: int
    samples_per_prompt: int
    max_prompt_tokens: int
    max_new_tokens: int
    epochs: int
    """Passes over the samples."""
    minibatches: int
    """Optimiser steps a pass."""
    more: str | None = None
    """Reason why a step may sample more than this, as a sentence; None: it never does."""

    @property
    def samples(self) -> int:
        return self.prompts * self.samples_per_prompt


@dataclass(frozen=True)
class WorkShape:
    """Amounts of an optimiser step at the limits that the recipe sets."""

    longest: int
    """Tokens of the longest sequence that is trained on."""
    context: int
    """Tokens of the longest sequence that a model reads or writes, answers of an evaluation included."""
    context_field: str
    """Fields below the stage that set `context`."""
    rows_per_update: int
    """Rows of one optimiser step, over all workers."""
    sequences_per_row: int = 1
    """Sequences of a row that are always in one micro-batch: 2 for a preference pair."""
    logits: bool = False
    """True if a role's loss needs logits over the vocabulary."""
    dropout: bool = True
    """True if dropout is active in training."""
    sampling: SamplingShape | None = None
    """Amounts of sampling, for a stage that samples its rows itself."""

    @property
    def sequences_per_update(self) -> int:
        return self.rows_per_update * self.sequences_per_row

    @property
    def row_tokens(self) -> int:
        """Tokens of the longest row: the least that a micro-batch must hold."""
        return self.longest * self.sequences_per_row


@dataclass(frozen=True)
class MicroBatch:
    """The largest micro-batch of one worker."""

    tokens: int
    """Tokens of the micro-batch, padding included."""
    length: int
    """Tokens of its longest row."""
    fill: Shares = ACTIVATIONS
    """Low, expected and high share of the tokens' activations that there are at once."""
    learned: Shares = ANSWER_SHARE
    """Low, expected and high share of the tokens that are learned, and so have logits."""
    usual: float | None = None
    """Mean tokens of the data's sequences, or of prompts where a stage samples its rows; None: they are not known."""


@dataclass(frozen=True)
class MeasuringShape:
    """Amounts of a stage that passes over rows and trains nothing."""

    micro_tokens: int
    """Tokens of a micro-batch."""
    longest: int
    """Tokens of the longest sequence that is read or written."""
    longest_field: str
    """Fields below the stage that set `longest`."""
    rows_at_once: int
    """Rows of the usual length that fill a micro-batch of every worker."""
    answered: float
    """Share of the sets that engines answer."""
    sampling: SamplingShape | None
    """Amounts of answers to `rows_at_once` prompts; None: engines answer none."""
