"""How parameters are updated, and on what resources."""

from typing import Literal

from pydantic import Field, model_validator

from triptych.recipe.base import Closed, Count, Fraction, Positive


class Optimizer(Closed):
    """AdamW (Loshchilov and Hutter 2019); the torch form, epsilon outside the bias correction."""

    lr: Positive = 2e-4
    betas: tuple[Fraction, Fraction] = (0.9, 0.999)
    eps: Positive = 1e-8
    weight_decay: float = Field(0.0, ge=0)
    max_grad_norm: Positive = 1.0
    """Global norm of the gradients of one role; larger gradients are scaled down to it."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """Shape of the learning rate after the warm-up; linear and cosine end at zero."""
    warmup: Fraction = 0.0
    """Share of all steps over which the learning rate rises from zero."""


class Batch(Closed):
    """How rows are cut. The gradient depends on `rows` alone."""

    rows: Count = 16
    """Rows (SFT), pairs (reward) or samples (PPO) of one optimiser step, over all workers."""
    micro_tokens: Count = 4096
    """Tokens, padding included, of one forward and backward pass; the rest is accumulated."""
    max_length: Count = 512
    """Longer rows are truncated on the right, and counted."""


class Workers(Closed):
    """The Ray Train group of a stage."""

    count: Count = 1
    cpus: Positive = 1.0
    """Logical CPUs that Ray reserves for each worker."""
    gpus: float = Field(0.0, ge=0)
    threads: Count | None = None
    """Torch threads of each worker; None: as many as its logical CPUs."""
    max_restarts: int = Field(2, ge=0)
    """How many worker failures a stage survives, going on from its last checkpoint."""


class Training(Closed):
    """The loop of SFT and reward stages: give epochs or steps."""

    epochs: Positive | None = None
    steps: Count | None = None
    optimizer: Optimizer = Optimizer()
    batch: Batch = Batch()
    workers: Workers = Workers()
    checkpoint_every: Count = 20
    """Steps between checkpoints."""
    evaluate_every: Count | None = None
    """Steps between measurements on held-out rows; None: at the end only."""

    @model_validator(mode="after")
    def _one_length(self) -> "Training":
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of `epochs` and `steps`")
        return self
