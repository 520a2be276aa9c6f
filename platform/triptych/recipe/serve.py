"""Serve configs: one base model, its adapters, and the engine that runs them."""

import re
from typing import Literal, get_args

from pydantic import Field, model_validator

from triptych.recipe.base import Closed, Count, Fraction, Name, Positive
from triptych.recipe.model import Model

LoraRank = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]
"""Ranks that vLLM has kernels for; an adapter of another rank is padded to the next."""
LORA_RANKS: tuple[int, ...] = get_args(LoraRank)


class EngineConfig(Closed):
    """vLLM on one replica."""

    max_loras: Count = 4
    """Adapters that one batch can mix."""
    max_cpu_loras: Count = 16
    """Adapters kept in memory; one that is not there is read from disk before its request runs."""
    max_lora_rank: LoraRank = 32
    """Largest rank of an adapter; memory of every slot grows with it."""
    max_model_len: Count | None = None
    """Prompt and answer, in tokens; None: as many as the model was made for, and as training may have."""
    max_num_seqs: Count = 64
    """Sequences in one batch."""
    max_queued_requests: Count = 256
    """Requests that wait beyond what the replicas take; more are answered 503."""
    threads: Count | None = None
    """Cores of the engine on CPU; None: all of the node."""
    kv_cache_gb: Positive = 1.0
    """Key/value cache on CPU."""
    gpu_memory: Fraction = 0.9
    """Share of each GPU's memory."""
    cpus: float = Field(0.0, ge=0)
    """Logical CPUs that Ray reserves for each replica."""
    gpus: int = Field(0, ge=0)
    """GPUs of each replica; the weights are split over them (tensor parallel)."""
    check_adapters: bool = True
    """Compare what an adapter answers, once it is loaded, with what its learner measured: a metric, and a warning."""
    adapter_timeout_s: Positive = 60.0
    """A request waits this long for its adapter to be fetched and loaded."""

    @model_validator(mode="after")
    def _slots(self) -> "EngineConfig":
        if self.max_cpu_loras < self.max_loras:
            raise ValueError(
                f"max_cpu_loras ({self.max_cpu_loras}) cannot be smaller than max_loras ({self.max_loras}): "
                "an adapter in a batch is also in memory"
            )
        return self


class RequestLimits(Closed):
    """Amounts that one request may ask for; a request that asks for more is refused."""

    max_n: Count = 16
    """Answers to one prompt (`n`), or the width of its beam search."""
    max_prompts: Count = 64
    """Prompts of one request to `/v1/completions`."""
    max_tokens: Count = 16_384
    """Tokens of one answer; a request that names no number gets at most as many."""
    max_body_mb: Positive = 8.0
    """Size of a request's body, in MB of 10^6 bytes."""


class ServeConfig(Closed):
    """The arguments of `triptych serve` and of `triptych.serve:build`."""

    model: Model
    """The base model that all adapters share."""
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,126}$")
    """Model id of the base; None: the last part of `model.base`, or all of a Hugging Face id."""
    registry: str = Field(min_length=1)
    """Registry of the adapters: a SQLite file or a SQLAlchemy URL."""
    artifacts: str | None = None
    """Folder or URL of the registry's artifacts; None: the registry's own default."""
    adapters: Literal["all"] | tuple[Name, ...] = "all"
    """Adapters to serve, each in all its versions; `all`: whatever fits the base, now or later."""
    engine: EngineConfig = EngineConfig()
    """Capacity and resources of each engine."""
    limits: RequestLimits = RequestLimits()
    """What one request may ask for."""
    replicas: Count = 1
    """Engines, each with a copy of the base."""
    host: str = Field("127.0.0.1", min_length=1)
    """Address to listen on."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    require_key: bool = True
    """Refuse requests without an API key of the registry."""

    @property
    def model_id(self) -> str:
        """Model id by which clients call the base model."""
        if self.name is not None:
            return self.name
        base = self.model.base.rstrip("/")
        if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", base):
            return base
        return base.rpartition("/")[2]
