"""One model for each kind of stage."""

from typing import Annotated, Literal

from pydantic import Field

from triptych.recipe.base import Closed, Count, Fraction, Name
from triptych.recipe.data import Data
from triptych.recipe.method import Lora, Method
from triptych.recipe.ppo import Ppo
from triptych.recipe.rollout import Rollout, Sampling
from triptych.recipe.training import Optimizer, Training, Workers


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


class Reward(_Stage):
    """Reward model on preference pairs (Bradley-Terry)."""

    kind: Literal["reward"]
    method: Method = Lora()
    data: Data
    train: Training
    min_accuracy: Fraction = 0.0
    """Pairwise accuracy on held-out pairs below which the stage fails and nothing is registered."""


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
    """Tokens, padding included, of one forward and backward pass."""
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


Stage = Annotated[Sft | Reward | PpoStage, Field(discriminator="kind")]
