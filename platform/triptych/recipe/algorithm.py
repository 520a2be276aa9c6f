"""Algorithms of reinforcement learning, each with the settings that it alone has."""

from typing import Literal

from pydantic import Field

from triptych.recipe.base import Closed, Fraction, Positive
from triptych.recipe.training import Optimizer


class Kl(Closed):
    """KL penalty to the reference, subtracted from the reward of every response token."""

    coef: float = Field(0.05, ge=0)
    """Weight of the penalty; the first one where it adapts."""
    kind: Literal["k1", "k2", "k3"] = "k1"
    """Estimator of the divergence (Schulman 2020, "Approximating KL divergence")."""
    target: Positive | None = None
    """Nats a response that an adaptive coefficient steers to (Ziegler et al. 2019); None: the coefficient is fixed."""
    horizon: Positive = 10_000.0
    """Samples over which the adaptive coefficient moves."""


class Importance(Closed):
    """Correction for the gap between the engines' and the learner's log-probabilities."""

    level: Literal["token", "sequence"] = "token"
    """Unit that has one weight."""
    cap: Positive = 2.0
    """Largest weight."""


class Critic(Closed):
    """The value model of PPO: a trainable copy of the reward model, head included."""

    optimizer: Optimizer = Optimizer(lr=1e-4)
    """Optimizer of the value model."""


class Ppo(Closed):
    """Schulman et al. 2017 (arXiv 1707.06347) with the details of Huang et al. 2024 (arXiv 2403.17031)."""

    name: Literal["ppo"] = "ppo"
    """Name of the algorithm."""
    clip: Positive = 0.2
    """Largest change of a token's probability ratio that is rewarded, in both directions."""
    value_clip: Positive | None = 0.2
    """Largest change of a value that is rewarded; None: values are not clipped."""
    gamma: Fraction = 1.0
    """Discount of later rewards."""
    lam: Fraction = 0.95
    """Weight of later errors in generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438)."""
    whiten: bool = True
    """Advantages to mean 0, variance 1 over the global batch."""
    critic: Critic = Critic()
    """The value model."""
