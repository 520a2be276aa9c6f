"""Muon: momentum with its singular values made equal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

Updates have the size of AdamW's, 0.2 sqrt(max(m, n)) (Liu et al. 2025, arXiv 2502.16982), so that one rate serves both.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from triptych.train.optimizers.adamw import update_by_adamw

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Groups with `orthogonal` hold matrices; the others fall to AdamW. Nesterov's momentum.

    State: of a matrix, `momentum_buffer` in its shape; of the others, AdamW's.
    """

    def __init__(self, groups: list[dict[str, Any]], momentum: float, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"momentum": momentum, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            updated = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not group["orthogonal"]:
                update_by_adamw(updated, self.state, group)
                continue
            for parameter in updated:
                self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, momentum, lr = self.state[parameter], group["momentum"], group["lr"]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        state["momentum_buffer"].lerp_(gradient, 1 - momentum)
        direction = orthogonalized(gradient.lerp(state["momentum_buffer"], momentum))
        parameter.mul_(1 - lr * group["weight_decay"])
        parameter.add_(direction, alpha=-lr * 0.2 * math.sqrt(max(parameter.shape)))


def orthogonalized(matrix: Tensor) -> Tensor:
    """`newton_schulz` of a whole matrix [m, n]; a sharded one is gathered for it, and its shard comes back."""
    if not isinstance(matrix, DTensor):
        return newton_schulz(matrix)
    mesh = matrix.device_mesh
    on_mesh: DTensor = matrix.to(mesh.device_type)  # type: ignore[assignment]  # where offloading keeps it elsewhere
    whole = newton_schulz(on_mesh.full_tensor())
    # Every rank has the whole: each takes its part, and nothing is sent.
    return distribute_tensor(whole, mesh, matrix.placements, src_data_rank=None).to(matrix.device)


def newton_schulz(matrix: Tensor) -> Tensor:
    """U S V^T [m, n] -> about U V^T: singular values between 0.7 and 1.2 or so. In bfloat16 on a GPU."""
    a, b, c = _COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT if tall else matrix
    x = x.bfloat16() if x.is_cuda else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrix.dtype)
