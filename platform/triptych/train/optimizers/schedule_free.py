"""Schedule-free AdamW (Defazio et al. 2024, arXiv 2405.15682, algorithm 1): an average in place of a schedule.

There are three points: z takes AdamW's steps, x is the average of z, and the gradient is taken at
y = beta1 x + (1 - beta1) z. The parameters hold y; x follows from y and z.
"""

from typing import Any

import torch


class ScheduleFreeAdamW(torch.optim.Optimizer):
    """State: `z` and `exp_avg_sq` in the parameter's shape; scalars `step`, `lr_max`, `weight_sum` (float64).

    Step t has weight lr_max(t)^2 in the average, so that a warm-up counts less. betas[0] must not be 0.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps})
        self._points: dict[torch.Tensor, torch.Tensor] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, y: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), lr, state = group["betas"], group["lr"], self.state[y]
        if not state:
            state |= {"z": y.clone(), "exp_avg_sq": torch.zeros_like(y)}
            state |= {name: torch.zeros((), dtype=torch.float64) for name in ("step", "lr_max", "weight_sum")}
        state["step"] += 1
        state["lr_max"].clamp_(min=lr)
        weight = float(state["lr_max"]) ** 2
        state["weight_sum"] += weight
        share = weight / float(state["weight_sum"]) if weight else 0.0
        z, variance = state["z"], state["exp_avg_sq"]
        variance.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        direction = gradient / variance.div(1 - beta2 ** float(state["step"])).sqrt_().add_(group["eps"])
        direction.add_(y, alpha=group["weight_decay"])
        # x is nowhere: y' = beta1 x' + (1 - beta1) z' with x' = (1 - share) x + share z' and z' = z - lr direction.
        y.lerp_(z, share).add_(direction, alpha=lr * (beta1 * (1 - share) - 1))
        z.sub_(direction, alpha=lr)

    @torch.no_grad()
    def averaging(self, on: bool) -> None:
        """Put x (on) or y (off, restored bit by bit) into the parameters; no step is taken while they hold x."""
        for y, value in self._points.items():
            y.copy_(value)
        self._points.clear()
        for group in self.param_groups if on else ():
            for y in group["params"]:
                if state := self.state[y]:
                    self._points[y] = y.clone()
                    y.lerp_(state["z"], 1 - 1 / group["betas"][0])
