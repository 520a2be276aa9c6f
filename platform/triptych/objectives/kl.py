"""KL divergence to the reference: estimators a token, and the controller of its coefficient."""

import math
from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.masking import widen

_MAX_EXPONENT = 20.0
"""e^20 is far outside of any trust region and still finite when it is squared in fp32."""


def kl_penalty(logp: Tensor, ref_logp: Tensor, kind: Literal["k1", "k2", "k3"] = "k1") -> Tensor:
    """Estimate of KL(policy || reference) from tokens that the policy sampled, same shape as its inputs.

    With d = logp - ref_logp (http://joschu.net/blog/kl-approx.html): k1 = d, unbiased and of either sign; k2 = d^2 / 2;
    k3 = exp(-d) - 1 + d, unbiased and never negative. The gradient of k3 is not the gradient of the KL: take k3 as
    a reward or a metric, k2 as a loss.
    """
    d = widen(logp) - widen(ref_logp)
    if kind == "k1":
        return d
    if kind == "k2":
        return d.square() / 2
    if kind == "k3":
        return torch.expm1((-d).clamp(max=_MAX_EXPONENT)) + d
    raise ValueError(f"unknown KL estimator {kind!r}: k1, k2 or k3")


class AdaptiveKL:
    """Proportional controller of the KL coefficient (Ziegler et al. 2019, arXiv 1909.08593, section 2.2)."""

    def __init__(self, coef: float, target: float, horizon: float) -> None:
        self.coef = coef
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, n: int) -> float:
        """Moves the coefficient after `n` samples whose mean KL was `kl` (nats a response), and returns it."""
        if not math.isfinite(kl):
            raise ValueError(f"the KL coefficient cannot follow a KL of {kl}")
        error = min(max(kl / self.target - 1.0, -0.2), 0.2)
        self.coef *= 1.0 + error * n / self.horizon
        return self.coef

    def state_dict(self) -> dict[str, float]:
        """State for a checkpoint; target and horizon are the recipe's."""
        return {"coef": self.coef}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Continues from `state_dict`."""
        self.coef = state["coef"]
