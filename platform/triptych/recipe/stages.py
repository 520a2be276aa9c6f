"""One model for each kind of stage."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from triptych.recipe.base import Closed, Count, Fraction, Name
from triptych.recipe.data import Data
from triptych.recipe.matrix import Lora
from triptych.recipe.method import Method
from triptych.recipe.ppo import Ppo
from triptych.recipe.rollout import Rollout, Sampling
from triptych.recipe.training import Lever, Memory, Optimizer, Training, Workers

_OF_ENTITY = re.compile("[BIES]-.+")


class _Stage(Closed):
    needs: tuple[str, ...] = ()
    """Stages that must end first, beside those that a field of this stage names."""
    register_as: Name | None = None
    """Name of the adapter in the registry; None: `<recipe>-<stage>`."""

    def parents(self) -> tuple[str, ...]:
        """Names of the stages that this one reads from or waits for."""
        return self.needs


class Sft(_Stage):
    """Supervised fine-tuning on chats; the loss counts the assistant's tokens only."""

    kind: Literal["sft"]
    method: Method = Lora()
    data: Data
    train: Training


class _Labelling(_Stage):
    """A head of classes that reads the model's hidden states."""

    method: Method = Lora()
    data: Data
    train: Training

    @model_validator(mode="after")
    def _whole_rows(self) -> "_Labelling":
        if self.train.batch.overlength == "split":
            raise ValueError("train.batch.overlength: split is for chats; allowed here: truncate, drop")
        return self


def _each_once(labels: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(labels)) < len(labels):
        raise ValueError(f"each class once, not {', '.join(labels)}")
    return labels


Labels = Annotated[tuple[str, ...], Field(min_length=2), AfterValidator(_each_once)]


class Classification(_Labelling):
    """A head that names the class of a text."""

    kind: Literal["classification"]
    labels: Labels
    """The classes, in the order of the head's outputs."""


class TokenClassification(_Labelling):
    """A head that names the tag of every word: entities, parts of speech."""

    kind: Literal["token_classification"]
    labels: Labels
    """The tags, in the order of the head's outputs. Entities are marked by `O` and by `B-`, `I-`, `E-`, `S-` before a
    type (BIO, BIOES), and are measured whole."""
    separator: str = " "
    """What stands between two words in a text: a space, or nothing where a script has none."""

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
        """Whether the tags are those of entities."""
        return any(_OF_ENTITY.fullmatch(label) for label in self.labels)


class QuestionAnswering(_Labelling):
    """A head that finds where in a context the answer to a question starts and ends."""

    kind: Literal["question_answering"]
    max_answer_tokens: Count = 30
    """Longer spans are not answers (30: as BERT's on SQuAD, Devlin et al. 2019)."""

    @property
    def labels(self) -> tuple[str, ...]:
        """What the head's outputs stand for."""
        return ("start", "end")


class Reward(_Stage):
    """Reward model on preference pairs (Bradley-Terry)."""

    kind: Literal["reward"]
    method: Method = Lora()
    data: Data
    train: Training
    min_accuracy: Fraction = 0.0
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


class PpoStage(_Stage):
    """Reinforcement learning from a reward model."""

    kind: Literal["ppo"]
    policy: str
    """The SFT stage, or a registered adapter version, that the policy starts from and is held to."""
    reward: str
    """The reward stage, or a registered reward model."""
    data: Data
    """Prompts."""
    steps: Count
    prompts_per_step: Count = 16
    samples_per_prompt: Count = 4
    ppo: Ppo = Ppo()
    rollout: Rollout = Rollout()
    policy_optimizer: Optimizer = Optimizer(lr=1e-4)
    value_optimizer: Optimizer = Optimizer(lr=1e-4)
    micro_tokens: Count = 4096
    """Tokens of one forward and backward pass, padding included where there is padding."""
    memory: Memory = Memory()
    max_prompt_tokens: Count = 256
    """Longer prompts are malformed rows."""
    workers: Workers = Workers(threads=2)
    """More threads than CPUs pay off: the engines rest while the learner works."""
    checkpoint_every: Count = 4
    evaluate_every: Count | None = None
    """Steps between measurements on held-out prompts; None: before the first and after the last only."""
    evaluation: Sampling = Sampling()
    """How held-out answers are sampled."""
    judge: Literal["vader"] | None = None
    """A score that training never sees, measured on the held-out answers."""
    auto: tuple[Lever, ...] = ()
    """What the plan chooses for the machine, the fastest that fits; `auto` in the place of a value says the same."""

    def parents(self) -> tuple[str, ...]:
        """Names of the stages that this one reads from or waits for."""
        return tuple(ref for ref in (self.policy, self.reward) if "@" not in ref) + self.needs


Labelling = Classification | TokenClassification | QuestionAnswering
Supervised = Sft | Labelling | Reward
Stage = Annotated[Supervised | PpoStage, Field(discriminator="kind")]


def workers_of(stage: Stage) -> Workers:
    """The Ray Train group of a stage."""
    return stage.workers if isinstance(stage, PpoStage) else stage.train.workers


def workers_path(stage: Stage) -> tuple[str, ...]:
    """Where that group stands below its stage."""
    return ("workers",) if isinstance(stage, PpoStage) else ("train", "workers")
