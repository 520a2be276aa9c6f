"""The terms of proximal policy optimisation."""

from typing import Literal

from pydantic import Field

from triptych.recipe.base import Closed, Count, Fraction, Positive


class Kl(Closed):
    """KL penalty to the reference, subtracted from the reward of every response token."""

    coef: float = Field(0.05, ge=0)
    kind: Literal["k1", "k2", "k3"] = "k1"
    target: Positive | None = None
    """Nats a response that an adaptive coefficient steers to (Ziegler et al. 2019); None: the coefficient is fixed."""
    horizon: Positive = 10_000.0
    """Samples over which the adaptive coefficient moves."""


class Importance(Closed):
    """Correction for the gap between the engines' and the learner's log-probabilities."""

    level: Literal["token", "sequence"] = "token"
    cap: Positive = 2.0


class Ppo(Closed):
    """Schulman et al. 2017 (arXiv 1707.06347) with the details of Huang et al. 2024 (arXiv 2403.17031)."""

    clip: Positive = 0.2
    value_clip: Positive | None = 0.2
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    epochs: Count = 1
    """Passes over one batch of samples."""
    minibatches: Count = 1
    """Optimiser steps a pass."""
    whiten: bool = True
    """Advantages to mean 0, variance 1 over the global batch."""
    reward_clip: Positive = 10.0
    missing_eos_penalty: float = Field(1.0, ge=0)
    """Subtracted from the score of an answer that was cut by its length."""
    kl: Kl = Kl()
    importance: Importance = Importance()
