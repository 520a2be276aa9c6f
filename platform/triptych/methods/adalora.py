"""AdaLoRA: W x + s B diag(E) A x, with a budget of triplets over all layers (Zhang et al. 2023, arXiv 2303.10512).

A triplet is a row of A, an entry of E and a column of B. The budget falls from `init_r` to `target_r` times the number
of layers; the triplets that matter least lose their entry of E. peft's own allocator reads `.grad`, which is empty or a
share where a strategy shards; here it is given whole gradients. What comes out is a plain LoRA.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.methods.base import Export
from triptych.methods.hooked import HookedAttachment
from triptych.methods.lora import lora_config
from triptych.methods.targets import shape_of, targeted
from triptych.models.peft_files import PREFIX
from triptych.recipe.matrix import AdaLora, Lora

_PARTS = ("lora_A", "lora_E", "lora_B")


class SvdLora(nn.Module):
    """A layer's input x [..., in] and output y [..., out] -> y + s B diag(E) A x, with E = 0 at the start."""

    def __init__(self, inputs: int, outputs: int, method: AdaLora) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.randn(method.init_r, inputs) * 0.02)
        self.lora_E = nn.Parameter(torch.zeros(method.init_r, 1))
        self.lora_B = nn.Parameter(torch.randn(outputs, method.init_r) * 0.02)
        self.dropout = nn.Dropout(method.dropout)
        self.penalty = 0.0
        """Factor of the gradient of ||A A^T - I|| + ||B^T B - I|| that a backward pass adds; 0: none."""
        self._scaling = method.alpha / method.init_r

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if not torch.is_autocast_enabled(x.device.type):
            x = x.to(self.lora_A.dtype)
        a, b = self.lora_A, self.lora_B
        if self.penalty:
            a, b = _Orthogonal.apply(a, self.penalty), _Orthogonal.apply(b.T, self.penalty).T
        change = F.linear(F.linear(self.dropout(x), a * self.lora_E), b)
        return y + (change * self._scaling).to(y.dtype)


class _Orthogonal(torch.autograd.Function):
    """M [r, n] -> M; its backward pass adds `factor` times the gradient of ||M M^T - I||, the Frobenius norm."""

    @staticmethod
    def forward(ctx: Any, m: Tensor, factor: float) -> Tensor:
        ctx.save_for_backward(m)
        ctx.factor = factor
        return m.view_as(m)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (m,) = ctx.saved_tensors
        with torch.autocast(m.device.type, enabled=False):
            off = m @ m.T - torch.eye(len(m), dtype=m.dtype, device=m.device)
            own = 2 * off @ m / off.norm().clamp(min=1e-12)
        return outer[0] + ctx.factor * own, None


class AdaLoraAttachment(HookedAttachment):
    """The triplets of all layers, their smoothed sensitivities, and which of them the budget keeps."""

    adaptive = True

    def __init__(self, role: str, method: AdaLora) -> None:
        super().__init__(role)
        self._method = method
        self._modules: dict[str, SvdLora] = {}
        self._state: dict[str, Tensor] = {}
        self._spent = False
        """True once another training has brought the budget to its end: the ranks that it left stay."""

    def add(self, host: nn.Module, name: str, module: SvdLora) -> None:
        """Put the triplets of one layer beside it."""
        self.put(host, "adalora", f"{PREFIX}{name}", module)
        self._modules[f"{PREFIX}{name}"] = module
        for part in _PARTS:
            for kind in ("sensitivity", "uncertainty"):
                parameter = getattr(module, part)
                self._state[f"{PREFIX}{name}.{part}.{kind}"] = torch.zeros_like(parameter, requires_grad=False)
        self._state[f"{PREFIX}{name}.kept"] = torch.ones_like(module.lora_E[:, 0], requires_grad=False)

    def buffers(self) -> dict[str, Tensor]:
        """Tensors of the state that are not trained."""
        return self._state

    def go_on(self) -> None:
        """Keep the ranks that another training left: its budget does not rise again."""
        self._spent = True

    def penalize(self, factor: float) -> None:
        """Let backward passes add `factor` times the penalty's gradient. The penalty is the mean over all matrices."""
        for module in self._modules.values():
            module.penalty = factor * self._method.orth_reg_weight / (2 * len(self._modules))

    def adapt(
        self, step: int, total: int, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Smooth the sensitivities of this update; allocate the budget; E without what it leaves out."""
        if self._spent:
            return self._masked(values)
        method, done = self._method, step + 1
        first, last = round(method.tinit * total), total - round(method.tfinal * total)
        if done < last:
            self._smooth(values, gradients)
        if done <= first and done < last:
            return {}
        if done < last and done % method.delta_t:
            return {}
        target, start = (rank * len(self._modules) for rank in (method.target_r, method.init_r))
        budget = target + int((start - target) * max(1 - (done - first) / max(last - first, 1), 0.0) ** 3)
        if done <= last or self.rank() != target:
            self._allocate(budget if done < last else target)
        return self._masked(values)

    def settle(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Allocate the final budget where training ended before it, and zero what grew back outside of it."""
        target = self._method.target_r * len(self._modules)
        if self.rank() > target:
            self._allocate(target)
        return self._masked(values)

    def rank(self) -> int:
        """Triplets that are kept, of all layers."""
        return sum(self.ranks())

    def ranks(self) -> list[int]:
        """Triplets that are kept of each layer."""
        return [int(self._state[f"{name}.kept"].sum()) for name in self._modules]

    def metrics(self) -> dict[str, float]:
        """Mean and extremes of the layers' ranks."""
        ranks = self.ranks()
        return {"rank_mean": sum(ranks) / len(ranks), "rank_min": float(min(ranks)), "rank_max": float(max(ranks))}

    def _masked(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Every E without the entries that the budget leaves out."""
        found = {}
        for name in self._modules:
            e = values[f"{name}.lora_E"]
            found[f"{name}.lora_E"] = e * self._state[f"{name}.kept"][:, None].to(e)  # with offloading they lie apart
        return found

    def _smooth(self, values: Mapping[str, Tensor], gradients: Mapping[str, Tensor]) -> None:
        """Equations 9 and 10, of |w g|."""
        for name in self._modules:
            for part in _PARTS:
                key = f"{name}.{part}"
                now = (values[key] * gradients[key]).abs()
                sensitivity, uncertainty = self._state[f"{key}.sensitivity"], self._state[f"{key}.uncertainty"]
                sensitivity.lerp_(now.to(sensitivity), 1 - self._method.beta1)
                uncertainty.lerp_((now.to(sensitivity) - sensitivity).abs(), 1 - self._method.beta2)

    def _allocate(self, budget: int) -> None:
        """Keep the triplets of largest importance: equations 7 and 8."""
        scores = []
        for name in self._modules:
            a, e, b = (
                self._state[f"{name}.{part}.sensitivity"] * self._state[f"{name}.{part}.uncertainty"] for part in _PARTS
            )
            scores.append(e[:, 0] + a.mean(dim=1) + b.mean(dim=0))
        # A stable order: ranks of a group and resumed runs keep the same ones of equal scores.
        order = torch.sort(torch.cat(scores), descending=True, stable=True).indices[:budget]
        kept = torch.zeros(sum(map(len, scores)), device=order.device)
        kept[order] = 1
        for name, mine in zip(self._modules, kept.split([len(score) for score in scores]), strict=True):
            self._state[f"{name}.kept"].copy_(mine)


def attach(model: PreTrainedModel, method: AdaLora, role: str) -> AdaLoraAttachment:
    """Triplets beside every targeted layer.

    Raises:
        UserError: the targets match no module of the model.
    """
    attachment = AdaLoraAttachment(role, method)
    hosts = dict(model.named_modules())
    for name in targeted(model, method.targets, method.layers):
        attachment.add(hosts[name], name, SvdLora(*shape_of(hosts[name]), method))
    return attachment


def ranks(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Module -> triplets that its budget keeps, by what `parameters` and `buffers` of a role with AdaLoRA hold."""
    kept = {name.removesuffix(".kept"): t for name, t in state.items() if name.endswith(".kept")}
    return {name.partition(PREFIX)[2]: int((t > 0).sum()) for name, t in kept.items()}


def export(method: AdaLora, state: Mapping[str, Tensor]) -> Export:
    """A LoRA of the triplets that are left, exactly; a layer without any is left out."""
    weights: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    names = [key.removesuffix(".kept") for key in state if key.endswith(".kept")]
    for name in names:
        a, e, b = (state[f"{name}.{part}"] for part in _PARTS)
        kept = (state[f"{name}.kept"] > 0).nonzero()[:, 0]
        rank = len(kept)
        if rank:
            # LoRA's scaling is alpha / rank: what makes it ours goes into B, E into A.
            weights[f"{name}.lora_A.weight"] = (a * e)[kept]
            weights[f"{name}.lora_B.weight"] = b[:, kept] * (rank / method.init_r)
            ranks[name.removeprefix(PREFIX)] = rank
    most = max(ranks.values())
    plain = Lora(
        lr=method.lr,
        r=most,
        alpha=method.alpha,
        dropout=method.dropout,
        targets=tuple(ranks),
        rank_pattern={name: rank for name, rank in ranks.items() if rank != most},
    )
    return Export(plain, weights, lora_config(plain))
