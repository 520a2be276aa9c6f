"""Settings of rollouts: sampling of answers during reinforcement learning."""

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from triptych.recipe.base import Closed, Count, Fraction, Positive
from triptych.recipe.model import Model
from triptych.recipe.spec import Path

LEAST_TEMPERATURE = 0.01
"""vLLM samples at no lower one."""


class Sampling(Closed):
    """Sampling settings of one answer."""

    max_new_tokens: Count = 48
    """Tokens after which an answer is cut."""
    temperature: float = Field(1.0, ge=LEAST_TEMPERATURE, le=2)
    """Divides the logits here and in every log-probability of the learner."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Probability mass that tokens are drawn from: the most likely ones that reach it together."""

    def changed(self, given: "Sampling") -> "Sampling":
        """These settings, but for those that `given` does not leave out."""
        own = {name: getattr(given, name) for name in given.model_fields_set}
        return given.model_copy(update=self.model_dump() | own)


class Engines(Closed):
    """A pool of vLLM engines."""

    engines: Count = 2
    """Engines in the pool."""
    cpus: float = Field(0.5, ge=0)
    """Logical CPUs that Ray reserves for each engine."""
    gpus: float = Field(0.0, ge=0)
    """GPUs, or a share of one, that Ray reserves for each engine."""
    threads: Count = 1
    """Cores of each engine."""
    kv_cache_gb: Positive = 1.0
    """Key/value cache of each engine on CPU."""
    gpu_memory: Fraction = 0.4
    """Share of the GPU's memory of each engine."""
    sync: Literal["auto", "merged", "adapter"] = "auto"
    """Form of the weights that engines get: merged, or an adapter. auto: an adapter on GPU and in bfloat16, which
    loses what is too small to move a weight; merged on CPU in other precisions, and of families without LoRA there."""
    timeout_s: Positive = 300.0
    """An engine that answers nothing for this long is replaced."""


@dataclass(frozen=True)
class EngineModel:
    """A model of its own that engines run beside a stage, such as a teacher."""

    name: str
    """What it is to the stage."""
    field: Path
    """Path of its fields below the stage; those of its engines stand in `engines` there."""
    model: Model
    engines: Engines
    context: int
    """Tokens of the longest sequence that it gets."""
    context_field: str
    """The stage's fields that this follows from."""


class Rollout(Engines):
    """The prompts of a step, and the pool of vLLM engines that answers them."""

    prompts_per_step: Count = 16
    """Prompts of one step."""
    samples_per_prompt: Count = 4
    """Answers to each prompt."""
    max_prompt_tokens: Count = 256
    """Longer prompts are malformed rows."""
    sampling: Sampling = Sampling()
    """Sampling of answers."""
