"""LoRA and its variants through peft: W x + s B A x, with B = 0 at the start (Hu et al. 2021, arXiv 2106.09685).

s is alpha / r, or alpha / sqrt(r). PiSSA and OLoRA start B0 A0 as a part of W and train it within W. The base stays as
it is, for other roles compute with it too: here W x + s (B A - B0 A0) x, which is a LoRA of rank 2 r.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from transformers import PreTrainedModel

from triptych.errors import UserError
from triptych.methods.base import Export
from triptych.methods.parameters.matrix import reached_experts
from triptych.methods.peft_family import PeftAttachment, fix, inject, modules_of
from triptych.methods.targets import experts_of, shape_of, targeted, weight_of
from triptych.models.peft_files import PREFIX, expert_parameters, of_module
from triptych.recipe.matrix import Dora, Lora, Pissa

LowRank = Lora | Dora | Pissa
_OLD_EXPERTS = ("gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")
"""Names that transformers 4 gave to layers of experts, and that peft reads as all experts of a mixture."""


class FromWeights(PeftAttachment):
    """A LoRA that is a part of the weights at the start, and the part that it was."""

    def __init__(self, layers: list[tuple[str, Any]], role: str, start: str) -> None:
        super().__init__(layers, [role, start])
        self._start = start

    def buffers(self) -> dict[str, Tensor]:
        """A0 and B0 of each layer."""
        return {
            f"{PREFIX}{name}.start_{side}": getattr(layer, f"lora_{side}")[self._start].weight
            for name, layer in self.layers
            for side in "AB"
        }


def lora_config(method: LowRank) -> LoraConfig:
    """peft's configuration of a recipe's method."""
    init = method.init if isinstance(method, Lora) and method.init in ("gaussian", "orthogonal") else True
    return LoraConfig(
        r=method.r,
        lora_alpha=exact(method.alpha),
        lora_dropout=method.dropout,
        target_modules=method.targets if isinstance(method.targets, str) else list(method.targets),
        use_rslora=method.rslora,
        use_dora=isinstance(method, Dora),
        rank_pattern=dict(method.rank_pattern),
        alpha_pattern={name: exact(alpha) for name, alpha in method.alpha_pattern.items()},
        init_lora_weights=init,
        task_type="CAUSAL_LM",
    )


def exact(alpha: float) -> int:
    """Alpha as peft's JSON should hold it: an int where it is whole, else the float, which vLLM reads exactly."""
    return int(alpha) if float(alpha).is_integer() else alpha  # type: ignore[return-value]


def attach(model: PreTrainedModel, method: LowRank, role: str) -> PeftAttachment:
    """An adapter in every targeted layer, and on the experts of a mixture.

    Raises:
        UserError: the targets match no module of the model, a pattern none of the targets, the rank is too high, or
            experts cannot be trained as the method says.
    """
    config = lora_config(method)
    too = isinstance(method, Lora) and method.experts
    config.target_modules = names = targeted(model, method.targets, method.layers, experts_too=too)
    experts = list(reached_experts(method, experts_of(model)))
    config.target_parameters = experts or None
    _check_patterns(method, [*names, *experts])
    layers = inject(model, config, role)
    if _init(method) in ("pissa", "olora"):
        return _from_weights(model, method, config, role, layers)
    if isinstance(method, Lora) and method.freeze_a:
        for _, layer in layers:
            fix(layer.lora_A[role])
        return PeftAttachment(layers, [role])
    return PeftAttachment(layers, [role], plain=isinstance(method, Lora))


def export(method: LowRank, state: Mapping[str, Tensor]) -> Export:
    """peft's LoRA files."""
    if isinstance(method, Dora) or _init(method) not in ("pissa", "olora"):
        return Export(method, dict(state), _exported(method, state))
    twice = _twice(method)
    weights = {}
    for name, tensor in state.items():
        module, _, rest = name.partition(".lora_")
        if rest == "A.weight":
            weights[name] = torch.cat([tensor, state[f"{module}.start_A"].to(tensor)])
        elif rest == "B.weight":
            weights[name] = torch.cat([tensor, -state[f"{module}.start_B"].to(tensor)], dim=1)
    return Export(twice, weights, _exported(twice, weights))


def _exported(method: LowRank, weights: Mapping[str, Tensor]) -> LoraConfig:
    """The configuration of files with these weights."""
    config = lora_config(method)
    experts = expert_parameters(weights)
    if method.layers is not None or experts:
        config.target_modules = modules_of(name for name in weights if not expert_parameters([name]))
    if experts:
        _name_parameters(config, experts)
    return config


def _name_parameters(config: Any, experts: list[str]) -> None:
    """Name the experts' parameters, and those of layers that peft would take for experts of older files."""
    taken = [name for name in config.target_modules if name.rpartition(".")[2] in _OLD_EXPERTS]
    config.target_modules = [name for name in config.target_modules if name not in taken]
    config.target_parameters = [*experts, *(f"{name}.weight" for name in taken)]
    for patterns, default in ((config.rank_pattern, config.r), (config.alpha_pattern, config.lora_alpha)):
        patterns |= {f"{name}.weight": of_module(patterns, name, default) for name in taken if patterns}


def _init(method: LowRank) -> str:
    return "pissa" if isinstance(method, Pissa) else method.init if isinstance(method, Lora) else "default"


def _twice(method: Lora | Pissa) -> Lora:
    """A LoRA of twice the rank and the same scaling."""
    factor = 2**0.5 if method.rslora else 2.0
    return Lora(
        lr=method.lr,
        r=2 * method.r,
        alpha=factor * method.alpha,
        dropout=method.dropout,
        targets=method.targets,
        layers=method.layers,
        experts=False,
        rslora=method.rslora,
        rank_pattern={name: 2 * rank for name, rank in method.rank_pattern.items()},
        alpha_pattern={name: factor * alpha for name, alpha in method.alpha_pattern.items()},
    )


def _from_weights(
    model: PreTrainedModel, method: LowRank, config: LoraConfig, role: str, layers: list[tuple[str, Any]]
) -> FromWeights:
    for name, layer in layers:
        if layer.r[role] > min(shape_of(layer)):
            raise UserError(
                f"method.r: {layer.r[role]} with init {_init(method)}, and {name} is a matrix of rank "
                f"{min(shape_of(layer))}; allowed: up to that, a rank_pattern for this layer, or other targets"
            )
    start = f"{role}_start"
    config.lora_dropout = 0.0
    inject(model, config, start)
    for _, layer in layers:
        a, b = start_factors(method, weight_of(layer), layer.r[role], layer.scaling[role])
        for adapter in (role, start):
            layer.lora_A[adapter].weight.data.copy_(a)
            layer.lora_B[adapter].weight.data.copy_(b)
        layer.scaling[start] = -layer.scaling[role]
        fix(layer.lora_A[start])
        fix(layer.lora_B[start])
    return FromWeights(layers, role, start)


def start_factors(method: LowRank, weight: Tensor, rank: int, scaling: float) -> tuple[Tensor, Tensor]:
    """A0 [r, in] and B0 [out, r] from a weight [out, in].

    PiSSA: s B0 A0 is the weight's best approximation (arXiv 2404.02948, equations 2 and 3). OLoRA: the first columns
    and rows of its QR decomposition (Büyükakyüz 2024, arXiv 2406.01775).
    """
    if _init(method) == "olora":
        q, r = torch.linalg.qr(weight)
        return r[:rank], q[:, :rank]
    iterations = method.niter if isinstance(method, Pissa) else None
    if iterations is None:
        u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    else:
        u, s, v = torch.svd_lowrank(weight, q=rank, niter=iterations)
        vh = v.T
    root = (s[:rank] / scaling).sqrt()
    return root[:, None] * vh[:rank], u[:, :rank] * root


def _check_patterns(method: LowRank, names: list[str]) -> None:
    for field, patterns in (("rank_pattern", method.rank_pattern), ("alpha_pattern", method.alpha_pattern)):
        for pattern in patterns:
            try:
                found = any(re.match(rf"(.*\.)?({pattern})$", name) for name in names)
            except re.error as error:
                raise UserError(f"method.{field}: {pattern!r} is no regular expression: {error}") from None
            if not found:
                endings = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
                raise UserError(f"method.{field}: {pattern!r} is none of the targets; allowed: ends of {endings}")
