"""Stages that train a policy from what people prefer among answers."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from triptych.recipe.base import Closed, Positive, TagAt
from triptych.recipe.errors import Fault
from triptych.recipe.method import parts_of
from triptych.recipe.stage import StageBase
from triptych.recipe.supervised import PolicyStage
from triptych.recipe.work_shape import WorkShape


class Sigmoid(Closed):
    """The loss of DPO (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), or of cDPO where labels are smoothed."""

    name: Literal["sigmoid"] = "sigmoid"
    """Name of the loss."""
    beta: Positive = 0.1
    """Strength of the KL penalty that the loss stands for: larger values keep the policy closer to the reference."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Probability that a pair's answers are the wrong way round (cDPO: Mitchell 2023, "A note on DPO with noisy
    preferences & relationship to IPO", eq. 3)."""


class Ipo(Closed):
    """The loss of IPO (Azar et al. 2023, arXiv 2310.12036, eq. 17)."""

    name: Literal["ipo"]
    """Name of the loss."""
    beta: Positive = 0.1
    """The paper's tau: 1 / (2 beta) is the gap of the log-ratios that is aimed at."""
    average: bool = False
    """Log-ratios a token in place of those of whole answers, as TRL's and LLaMA-Factory's IPO takes them."""


PairLoss = Annotated[
    Annotated[Sigmoid, Tag("sigmoid")] | Annotated[Ipo, Tag("ipo")], Discriminator(TagAt("name", default="sigmoid"))
]


class PreferenceStage(PolicyStage):
    """A stage that trains a policy by what was said of answers."""

    @model_validator(mode="after")
    def _whole_answers(self) -> "PreferenceStage":
        if self.train.batch.overlength == "split":
            raise ValueError("train.batch.overlength: split is for chats; allowed here: truncate, drop")
        return self


class ReferenceStage(PreferenceStage):
    """A stage whose loss compares the policy with a frozen reference: what it starts from.

    The reference is the adapter of `from`, or the base. Its log-probabilities are computed once, before the first step,
    and kept. Dropout is off: both would be read through different noise.
    """

    def shape(self) -> WorkShape:
        """Amounts of an optimiser step."""
        return replace(super().shape(), dropout=False)

    def faults(self, stages: Mapping[str, StageBase]) -> Iterator[Fault]:
        """A dropout that would not act."""
        for part in () if self.inherited else parts_of(self.method):
            if getattr(part, "dropout", 0):
                yield Fault(
                    ("method", "dropout"),
                    f"{part.dropout:g}, and the loss compares log-probabilities of policy and reference, both without "
                    "dropout; allowed: 0, or no `dropout`",
                )


class Dpo(ReferenceStage):
    """Direct preference optimisation on pairs of answers: DPO, cDPO and IPO."""

    runner = "triptych.stages.supervised.dpo:run"
    task = "triptych.train.tasks.dpo:TASK"
    examples = "triptych.data.examples:answer_pairs"
    rows = "pairs"

    kind: Literal["dpo"]
    loss: PairLoss = Sigmoid()
    """Loss of a pair's log-ratios: sigmoid (DPO, cDPO) or ipo."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen answer's negative log-likelihood a token (Pang et al. 2024, arXiv 2404.19733, eq. 1)."""

    def shape(self) -> WorkShape:
        """Amounts of an optimiser step; a row is a pair of sequences."""
        return replace(super().shape(), sequences_per_row=2)

    def reports(self) -> tuple[str, ...]:
        """Loss, share of the pairs in order, implicit rewards and log-probabilities of both answers."""
        return ("loss", *PAIR_METRICS, *(("nll",) if self.sft_weight else ()))


class Kto(ReferenceStage):
    """Kahneman-Tversky optimisation on single answers that are desirable or not (Ethayarajh et al. 2024)."""

    runner = "triptych.stages.supervised.kto:run"
    task = "triptych.train.tasks.kto:TASK"
    examples = "triptych.data.examples:unpaired"
    rows = "unpaired"

    kind: Literal["kto"]
    beta: Positive = 0.1
    """Slope of the value around the baseline (arXiv 2402.01306, eq. 8): larger values keep the policy closer."""
    desirable_weight: Positive = 1.0
    """Weight of desirable answers, lambda_D. The paper keeps it times their number within 1 to 1.5 times the other."""
    undesirable_weight: Positive = 1.0
    """Weight of undesirable answers, lambda_U."""

    @model_validator(mode="after")
    def _rows_to_mismatch(self) -> "Kto":
        if self.train.batch.rows < 2:
            raise ValueError("train.batch.rows: 1, and the baseline is a mean over a step's rows; allowed: 2 or more")
        return self

    def reports(self) -> tuple[str, ...]:
        """Loss, baseline, implicit rewards and log-probabilities of desirable (chosen) and undesirable answers."""
        return ("loss", "kl", *(name for name in PAIR_METRICS if name != "margin"))


class Rrhf(PreferenceStage):
    """Rank responses to align human feedback (Yuan et al. 2023, arXiv 2304.05302): the better answer, the likelier."""

    runner = "triptych.stages.supervised.rrhf:run"
    task = "triptych.train.tasks.rrhf:TASK"
    examples = "triptych.data.examples:rankings"
    rows = "rankings"

    kind: Literal["rrhf"]
    max_answers: int = Field(8, ge=2, le=256)
    """Most answers of a row; a row with more is malformed."""
    length_penalty: float = Field(1.0, ge=0)
    """Exponent of the length that an answer's log-probability is divided by; 1: it is that of a token (eq. 1)."""
    sft_weight: float = Field(1.0, ge=0)
    """Weight of the best answer's negative log-likelihood a token beside the ranking loss (eq. 4)."""

    def shape(self) -> WorkShape:
        """Amounts of an optimiser step; a row is a prompt with all of its answers."""
        return replace(super().shape(), sequences_per_row=self.max_answers)

    def reports(self) -> tuple[str, ...]:
        """Loss and its parts, share of the pairs in order, log-probability of the best answer and of the worst."""
        return ("loss", "ranking", "nll", "accuracy", "logps_chosen", "logps_rejected")


PAIR_METRICS = ("accuracy", "margin", "rewards_chosen", "rewards_rejected", "logps_chosen", "logps_rejected")
"""Metrics of answers of which one is preferred."""

PREFERENCE_KINDS: dict[str, type[PreferenceStage]] = {"dpo": Dpo, "kto": Kto, "rrhf": Rrhf}
"""Kind -> model of its fields, for the table of all kinds."""
