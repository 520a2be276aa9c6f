"""Settings of training: optimizer, batch, memory, workers, checkpoints."""

import math
from abc import abstractmethod
from typing import Literal

from pydantic import Field, model_validator

from triptych.recipe.base import Closed, Count, Fraction, NoEffect, Positive

AutoSetting = Literal["micro_tokens", "checkpointing", "loss_chunk"]
"""A setting that a recipe can leave to the plan: it changes memory and speed, and nothing that is learned."""

StrategyName = Literal["single", "ddp", "fsdp", "zero1", "zero2", "zero3"]
"""A way to spread a model over workers."""

StrategyChoice = Literal["auto", StrategyName]
"""A strategy, or `auto`: the simplest that fits."""

Checkpointing = Literal["none", "selective", "full"]
"""Activation checkpointing, what backward recomputes: nothing; all but attention and every second product; all."""


class Optimizer(Closed):
    """Optimizer of one role's parameters. Fields of another optimizer than `name` have no effect."""

    name: Literal["adamw", "adamw_8bit", "sgd", "lion", "muon", "adamw_schedule_free"] = "adamw"
    """`muon` updates matrices; vectors, embeddings and heads fall to AdamW."""
    lr: Positive = 2e-4
    """Learning rate after the warm-up."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    """Usual for `lion`: 0.9 and 0.99, with a third to a tenth of AdamW's learning rate."""
    eps: Positive = 1e-8
    """Added to the denominator of adaptive updates."""
    momentum: Fraction = 0.9
    """Momentum of `sgd` and `muon`; muon's is Nesterov's and usually 0.95."""
    nesterov: bool = False
    """Nesterov momentum, for `sgd`."""
    weight_decay: float = Field(0.0, ge=0)
    """Decoupled weight decay, as AdamW's; `sgd` adds it to the gradient. Gains, biases and all vectors never decay."""
    max_grad_norm: Positive = 1.0
    """Global norm of the gradients of one role; larger gradients are scaled down to it."""
    lora_plus: Positive = 1.0
    """Learning rate of LoRA's B matrices over that of A (Hayou et al. 2024, arXiv 2402.12354)."""
    schedule: Literal["constant", "linear", "cosine", "wsd"] = "constant"
    """Shape of the learning rate after the warm-up; all but constant end at zero."""
    warmup: Fraction = 0.0
    """Share of all steps over which the learning rate rises from zero."""
    decay: Fraction = 0.2
    """Share of all steps, the last, over which `wsd` (warm-up, stable, decay) falls."""

    @model_validator(mode="after")
    def _agree(self) -> "Optimizer":
        if 1 in self.betas:
            raise ValueError("betas of 1; allowed: less than 1")
        if self.name == "adamw_schedule_free" and self.schedule != "constant":
            raise ValueError(f"schedule {self.schedule} with adamw_schedule_free; allowed: constant, with a warmup")
        if self.name == "adamw_schedule_free" and self.betas[0] == 0:
            raise ValueError("betas[0] 0 with adamw_schedule_free; allowed: more than 0")
        if self.name == "sgd" and self.nesterov and self.momentum == 0:
            raise ValueError("nesterov with momentum 0; allowed: momentum more than 0")
        if self.schedule == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup:g} and decay {self.decay:g} with wsd; allowed: together at most 1")
        return self


class BatchBase(Closed):
    """Division of a step's rows into micro-batches."""

    micro_tokens: Count = 4096
    """Tokens of one forward and backward pass, padding included where there is padding; the rest is accumulated."""


class RowLimits(BatchBase):
    """Length of rows, and size of micro-batches."""

    max_length: Count = 512
    """Tokens of the longest row."""
    overlength: Literal["truncate", "split", "drop"] = "truncate"
    """Longer chats are cut on the right, cut into several rows, or left out, and counted; longer pairs, and
    answers that are labelled or ranked, are left out."""


class BatchSettings(RowLimits):
    """Rows of a step and their division into micro-batches. The gradient depends on `rows` alone."""

    rows: Count = 16
    """Rows of one optimiser step, over all workers; pairs of a reward model and of DPO, prompts of RRHF."""


class Memory(Closed):
    """Settings that trade speed for memory."""

    checkpointing: Checkpointing = "none"
    """Activation checkpointing, what backward recomputes: nothing; all but attention and every second product; all."""
    loss_chunk: Count | None = 512
    """Tokens whose logits exist at once; None: all of a micro-batch."""


class Workers(Closed):
    """The Ray Train group of a stage, and how a model is spread over it."""

    count: Count = 1
    """Workers, each with a copy or a share of the model."""
    min_count: Count | None = None
    """Elastic: go on with fewer workers, down to these, while the cluster has no room for `count`."""
    cpus: Positive = 1.0
    """Logical CPUs that Ray reserves for each worker."""
    gpus: float = Field(0.0, ge=0)
    """GPUs, or a share of one, that Ray reserves for each worker."""
    threads: Count | None = None
    """Torch threads of each worker; None: as many as its logical CPUs."""
    max_restarts: int = Field(2, ge=0)
    """Number of worker failures after which a stage continues from its last checkpoint."""
    strategy: StrategyChoice = "auto"
    """`auto`: single or ddp; fsdp where the model does not fit otherwise."""
    offload: bool = False
    """Keep what fsdp or zero shard in CPU memory."""

    @property
    def fewest(self) -> int:
        """Number of workers of the group at its smallest."""
        return self.min_count or self.count

    @model_validator(mode="after")
    def _at_most_all(self) -> "Workers":
        if self.min_count is not None and self.min_count > self.count:
            raise ValueError(f"min_count {self.min_count} is more than count {self.count}")
        if self.strategy == "single" and self.count > 1:
            raise ValueError("strategy single has one worker; allowed with more: ddp, fsdp, zero1, zero2, zero3")
        if self.offload and self.strategy not in ("fsdp", "zero2", "zero3"):
            raise ValueError("offload needs strategy fsdp, zero2 or zero3")
        return self


class EarlyStopping(Closed):
    """End when a held-out metric no longer gets better; the best checkpoint's weights are kept."""

    metric: str = "loss"
    """A metric of the stage's held-out rows, without `heldout_`."""
    mode: Literal["min", "max"] = "min"
    """Direction of the metric: smaller (min) or larger (max) values are better."""
    patience: Count = 3
    """Evaluations without progress that end the stage."""
    min_delta: float = Field(0.0, ge=0)
    """A smaller gain is no progress."""


class TrainingBase(Closed):
    """The part of a stage's training that is the same for every kind."""

    optimizer: Optimizer = Optimizer()
    """Optimizer of the trained roles."""
    batch: BatchBase = BatchBase()
    """Size of micro-batches."""
    memory: Memory = Memory()
    """Settings that trade speed for memory."""
    workers: NoEffect[Workers] = Workers()
    """Number, resources and strategy of the Ray Train workers."""
    checkpoint_every: NoEffect[Count] = 20
    """Steps between checkpoints."""
    evaluate_every: Count | None = None
    """Steps between measurements on held-out rows; None: at the end only."""
    max_bad_steps: Count = 5
    """Steps in a row without a finite gradient that end the stage; each is skipped, and counted. Steps that search for
    float16's loss scale are skipped too, and do not count here."""
    auto: NoEffect[tuple[AutoSetting, ...]] = ()
    """Settings that the plan chooses for the machine, the fastest that fit; the value `auto` means the same."""

    @abstractmethod
    def total_steps(self, rows: int) -> int:
        """Optimiser steps of the whole stage on `rows` training rows."""


class Training(TrainingBase):
    """Training on rows that are there before it starts: give epochs or steps."""

    epochs: Positive | None = None
    """Passes over the training rows."""
    steps: Count | None = None
    """Optimiser steps, in place of epochs."""
    batch: BatchSettings = BatchSettings()
    """Rows of an optimiser step, and how they are cut."""
    log_every: NoEffect[Count] = 1
    """Steps that one row of the metrics log is made of; checkpoints and evaluations end a row too."""
    early_stopping: EarlyStopping | None = None
    """End before the last step where a held-out metric stops improving."""

    @model_validator(mode="after")
    def _one_length(self) -> "Training":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        if self.early_stopping and not self.evaluate_every:
            raise ValueError("early_stopping needs `evaluate_every`")
        return self

    def total_steps(self, rows: int) -> int:
        """Optimiser steps of the whole stage; each epoch ends with what is left, however few."""
        if self.steps is not None:
            return self.steps
        return math.ceil((self.epochs or 0) * math.ceil(rows / self.batch.rows))
