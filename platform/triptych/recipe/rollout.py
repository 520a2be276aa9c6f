"""How answers are sampled during reinforcement learning."""

from typing import Literal

from pydantic import Field

from triptych.recipe.base import Closed, Count, Fraction, Positive


class Sampling(Closed):
    max_new_tokens: Count = 48
    temperature: float = Field(1.0, gt=0, le=2)
    """Divides the logits here and in every log-probability of the learner."""
    top_p: float = Field(1.0, gt=0, le=1)


class Rollout(Closed):
    """The pool of vLLM engines."""

    engines: Count = 2
    cpus: float = Field(0.5, ge=0)
    """Logical CPUs that Ray reserves for each engine."""
    gpus: float = Field(0.0, ge=0)
    threads: Count = 1
    """Cores of each engine."""
    kv_cache_gb: Positive = 1.0
    """Key/value cache of each engine on CPU."""
    gpu_memory: Fraction = 0.4
    """Share of the GPU's memory of each engine."""
    sync: Literal["auto", "merged", "adapter"] = "auto"
    """How weights reach the engines: merged into the base, or as an adapter. auto: merged on CPU, adapter on GPU."""
    timeout_s: Positive = 300.0
    """An engine that answers nothing for this long is replaced."""
    sampling: Sampling = Sampling()
