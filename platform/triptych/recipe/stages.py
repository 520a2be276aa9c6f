"""One model for each kind of stage."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from triptych.recipe.base import Closed, Count, Fraction, Name
from triptych.recipe.data import Data
from triptych.recipe.method import Lora, Method
from triptych.recipe.ppo import Ppo
from triptych.recipe.rollout import Rollout, Sampling
from triptych.recipe.training import Memory, Optimizer, Training, Workers


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


class Classification(_Stage):
    """A head that names the class of a text."""

    kind: Literal["classification"]
    method: Lora = Lora()
    data: Data
    train: Training
    labels: tuple[str, ...] = Field(min_length=2)
    """The classes, in the order of the head's outputs."""

    @model_validator(mode="after")
    def _possible(self) -> "Classification":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels: each class once, not {', '.join(self.labels)}")
        if self.train.batch.overlength == "split":
            raise ValueError("train.batch.overlength: split is for chats; a text has one class: truncate or drop it")
        return self


class Reward(_Stage):
    """Reward model on preference pairs (Bradley-Terry)."""

    kind: Literal["reward"]
    method: Lora = Lora()
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

    def parents(self) -> tuple[str, ...]:
        """Names of the stages that this one reads from or waits for."""
        return tuple(ref for ref in (self.policy, self.reward) if "@" not in ref) + self.needs


Stage = Annotated[Sft | Classification | Reward | PpoStage, Field(discriminator="kind")]


def workers_of(stage: Stage) -> Workers:
    """The Ray Train group of a stage."""
    return stage.workers if isinstance(stage, PpoStage) else stage.train.workers


def workers_path(stage: Stage) -> tuple[str, ...]:
    """Where that group stands below its stage."""
    return ("workers",) if isinstance(stage, PpoStage) else ("train", "workers")
