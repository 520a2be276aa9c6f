"""AdamW with its two moments in 8 bits (Dettmers et al. 2022, arXiv 2110.02861): block-wise dynamic quantization.

Blocks are 64 long and lie within rows, so that a shard of rows is quantized as the whole is.
"""

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, zeros

from triptych.train.optimizers.adamw import update_by_adamw

_BLOCK = 64
_SMALL = 4096
"""Parameters with fewer values keep float32 moments."""
_TRAILING = 13
_LEADING_MASK = (1 << 19) - 1
"""A float32 is a sign, 8 bits of exponent and 23 of mantissa."""
_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 22}
"""Values that are updated at once, of as many parameters as that are: their float32 moments exist meanwhile.

A CPU's caches want few, and a GPU few calls.
"""
_Pieces = tuple[Tensor, ...]
"""Rows [m, n] of a parameter and its gradient, of a moment's codes and scales [m, n / 64], and of the other's."""


class AdamW8bit(torch.optim.Optimizer):
    """State: `step`; `exp_avg` and `exp_avg_sq`, codes (uint8) in the parameter's shape [m, ...]; their scales
    `exp_avg_scale` and `exp_avg_sq_scale` [m, values of a row / 64], float32.

    Vectors, small parameters and rows that are no multiple of 64 long fall to AdamW in float32.
    """

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, {"betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            updated = [parameter for parameter in group["params"] if parameter.grad is not None]
            update_by_adamw([parameter for parameter in updated if not _in_blocks(parameter)], self.state, group)
            by_step: dict[float, list[_Pieces]] = {}
            for parameter in filter(_in_blocks, updated):
                pieces = self._pieces(parameter, parameter.grad)
                by_step.setdefault(float(self.state[parameter]["step"]), []).extend(pieces)
            for number, found in by_step.items():
                for pieces in _batches(found):
                    _update_together(pieces, step=number, group=group)

    def _pieces(self, parameter: Tensor, gradient: Tensor) -> list[_Pieces]:
        """A parameter whose next step this is, in pieces that are not too large."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())
            for moment in ("exp_avg", "exp_avg_sq"):
                state[moment] = torch.zeros_like(parameter, dtype=torch.uint8)
                state[f"{moment}_scale"] = _no_scales(parameter)
        state["step"] += 1
        tensors = [parameter, gradient, state["exp_avg"], state["exp_avg_scale"]]
        tensors += [state["exp_avg_sq"], state["exp_avg_sq_scale"]]
        rows = [_rows(tensor) for tensor in tensors]
        size = max(_AT_ONCE[parameter.device.type] // rows[0].shape[1], 1)
        return list(zip(*(tensor.split(size) for tensor in rows), strict=True))


def _batches(pieces: list[_Pieces]) -> Iterator[list[_Pieces]]:
    """Pieces in their order, in lists of as many as are updated at once."""
    batch: list[_Pieces] = []
    for piece in pieces:
        together = sum(tensors[0].numel() for tensors in (*batch, piece))
        if batch and together > _AT_ONCE[piece[0].device.type]:
            yield batch
            batch = []
        batch.append(piece)
    if batch:
        yield batch


def _update_together(pieces: list[_Pieces], *, step: float, group: dict[str, Any]) -> None:
    """One step of many small pieces as of one: an operation costs more than the values of most."""
    if len(pieces) == 1:
        return _update_rows(*pieces[0], step=step, group=group)
    columns = list(zip(*pieces, strict=True))
    widths = [_BLOCK, _BLOCK, _BLOCK, 1, _BLOCK, 1]
    flat = [[tensor.reshape(-1, width) for tensor in column] for column, width in zip(columns, widths, strict=True)]
    joined = [torch.cat(column) for column in flat]
    _update_rows(*joined, step=step, group=group)
    for column, whole in zip(flat[:1] + flat[2:], joined[:1] + joined[2:], strict=True):  # gradients stay
        torch._foreach_copy_(column, whole.split([len(tensor) for tensor in column]))
    return None


def _update_rows(
    parameter: Tensor,
    gradient: Tensor,
    mean: Tensor,
    mean_scale: Tensor,
    square: Tensor,
    square_scale: Tensor,
    *,
    step: float,
    group: dict[str, Any],
) -> None:
    """One step of some rows [m, n], in place; the moments are those of `AdamW8bit`."""
    (beta1, beta2), lr = group["betas"], group["lr"]
    first = dequantize(mean, mean_scale, signed=True).to(gradient).lerp_(gradient, 1 - beta1)
    second = dequantize(square, square_scale, signed=False).to(gradient)
    second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    denominator = second.div(1 - beta2**step).sqrt_().add_(group["eps"])
    parameter.mul_(1 - lr * group["weight_decay"]).addcdiv_(first, denominator, value=-lr / (1 - beta1**step))
    for values, codes, scale, signed in ((first, mean, mean_scale, True), (second, square, square_scale, False)):
        new_codes, new_scale = quantize(values, signed=signed)
        codes.copy_(new_codes)
        scale.copy_(new_scale)


def quantize(values: Tensor, *, signed: bool) -> tuple[Tensor, Tensor]:
    """Values [m, n] -> nearest codes [m, n] (uint8) and scales [m, n / 64]: each block's greatest magnitude."""
    blocks = values.float().unflatten(1, (-1, _BLOCK))
    scale = blocks.abs().amax(dim=2)
    scaled = (blocks / scale.clamp(min=1e-38).unsqueeze(2)).flatten()
    # Ten times as quick as a binary search: a code by the leading bits, then perhaps the next.
    first_codes, middles = _code_by_leading_bits(signed, values.device)
    codes = first_codes.index_select(0, (scaled.view(torch.int32) >> _TRAILING) & _LEADING_MASK)
    codes += scaled > middles.index_select(0, codes.int())
    return codes.view(values.shape), scale


def dequantize(codes: Tensor, scale: Tensor, *, signed: bool) -> Tensor:
    """Codes [m, n] and scales [m, n / 64] -> values [m, n], float32."""
    values = _table(signed, codes.device).index_select(0, codes.flatten().int())
    return values.view(-1, _BLOCK).mul_(scale.view(-1, 1)).view(codes.shape)


@cache
def _table(signed: bool, device: torch.device) -> Tensor:
    """The 256 values of the dynamic tree type, ascending: seven decades, the upper ones finer; 0 and 1."""
    decades = []
    for digits in range(7):
        edges = torch.linspace(0.1, 1, 2 ** (digits if signed else digits + 1) + 1, dtype=torch.float64)
        decades.append(10.0 ** (digits - 6) * (edges[:-1] + edges[1:]) / 2)
    values = torch.cat(decades)
    both = torch.cat([-values, values] if signed else [values])
    return torch.cat([both, torch.tensor([0.0, 1.0])]).sort().values.float().to(device)


@cache
def _code_by_leading_bits(signed: bool, device: torch.device) -> tuple[Tensor, Tensor]:
    """(code of the least float32 with these sign, exponent and 10 bits of mantissa; code -> where the next begins).

    Floats that share those bits are so close that there is at most one boundary between them.
    """
    table = _table(signed, torch.device("cpu"))
    middles = (table[:-1] + table[1:]) / 2
    bits = torch.arange(_LEADING_MASK + 1, dtype=torch.int32) << _TRAILING
    least = torch.where(bits < 0, bits | ((1 << _TRAILING) - 1), bits).view(torch.float32)
    codes = torch.bucketize(least, middles).to(torch.uint8)
    return codes.to(device), torch.cat([middles, torch.tensor([torch.inf])]).to(device)


def _in_blocks(parameter: Tensor) -> bool:
    return parameter.ndim > 1 and parameter.numel() >= _SMALL and parameter.shape[1:].numel() % _BLOCK == 0


def _no_scales(parameter: Tensor) -> Tensor:
    """Zeros: whatever the codes, the moments are zero."""
    shape = (parameter.shape[0], parameter.shape[1:].numel() // _BLOCK)
    if not isinstance(parameter, DTensor):
        return torch.zeros(shape, device=parameter.device)
    sharded = zeros(*shape, device_mesh=parameter.device_mesh, placements=parameter.placements)
    return sharded.to(parameter.device)


def _rows(tensor: Tensor) -> Tensor:
    """[m, ...] -> this rank's rows [m', n], in place."""
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return local.view(len(local), local.shape[1:].numel())
