"""AdamW on some of an optimizer's parameters, for optimizers that leave those to it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


def update_by_adamw(
    parameters: Sequence[Tensor], state: Mapping[Tensor, dict[str, Tensor]], group: Mapping[str, Any]
) -> None:
    """One step of torch's fused AdamW on parameters that have a gradient, with the state's names as in torch."""
    if not parameters:
        return
    for parameter in parameters:
        if "exp_avg" not in state[parameter]:  # a checkpoint of an earlier version may hold Muon's state of a vector
            state[parameter]["step"] = torch.zeros((), device=parameter.device)
            state[parameter]["exp_avg"] = torch.zeros_like(parameter)
            state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
    adamw(
        list(parameters),
        [parameter.grad for parameter in parameters if parameter.grad is not None],
        [state[parameter]["exp_avg"] for parameter in parameters],
        [state[parameter]["exp_avg_sq"] for parameter in parameters],
        [],
        [state[parameter]["step"] for parameter in parameters],
        fused=True,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )
