"""Combinations with a method that are refused. Each function gives the reason, or None."""

from typing import Any

from triptych.recipe.matrix import AdaLora, Lora, Pissa
from triptych.recipe.method import MERGING, BitFit, Method, names_of, parts_of, trains_base
from triptych.recipe.part import Part
from triptych.recipe.virtual import PTuning

NO_EXPERTS = "adapter, and vLLM's CPU engine has no LoRA for the experts of a mixture; allowed: auto, merged"
"""Reason why engines take no adapter of experts, as a sentence on `rollout.sync`."""

NOT_GATHERED = (
    "zero3 gathers weights for the module that is called with them, and LoRA on experts reads them before; "
    "allowed: auto, single, ddp, fsdp, zero1, zero2, or `experts: false` in the method"
)
"""Reason why zero3 cannot train LoRA on experts, as a sentence on `workers.strategy`."""


def on_quantized(method: Method, quantization: str) -> str | None:
    """Reason why a method cannot train on a base of 8 or 4 bits."""
    if trains_base(method):
        return (
            f"{names_of(method)} trains weights of the base, and model.quantization {quantization} is for frozen ones"
        )
    reading = [part for part in _added(method) if part.reads_weights]
    if reading:
        return (
            f"{reading[0].name} computes with the base's weights themselves, which model.quantization "
            f"{quantization} does not keep"
        )
    return None


def under_strategy(method: Method, strategy: str) -> str | None:
    """Reason why a method cannot be trained under a strategy."""
    shared = [part for part in _added(method) if part.shares]
    if strategy == "fsdp" and shared:
        return f"{shared[0].name} trains one tensor in all blocks, and fsdp shards each block by itself"
    return None


def by_optimizer(method: Method, optimizer: str) -> str | None:
    """Reason why a method cannot be updated by an optimizer."""
    if optimizer == "adamw_schedule_free" and any(isinstance(part, AdaLora) for part in parts_of(method)):
        return "adalora overwrites weights of which adamw_schedule_free keeps two versions"
    return None


def beside_head(method: Method, kind: str) -> str | None:
    """Reason why a stage of this kind, which trains a head, cannot train by a method."""
    if trains_base(method):
        return f"{names_of(method)} makes a whole model, and a {kind} stage makes a head beside a frozen base"
    return None


def as_scorer(method: Method, quantization: str) -> str | None:
    """Reason why a registered reward model of a method cannot score beside a base of 8 or 4 bits."""
    if not trains_base(method):
        return None
    return (
        f"a whole reward model, whose weights model.quantization {quantization} would round; allowed: a reward model "
        "that is an adapter, or quantization null"
    )


def as_policy(method: Method) -> str | None:
    """Reason why reinforcement learning cannot start from a method; whole models are policies as they are."""
    stuck = [part for part in _added(method) if not part.merges]
    if stuck:
        return (
            f"{stuck[0].name} cannot be merged into the weights, and PPO's engines run merged weights or a "
            f"LoRA; allowed: {', '.join(MERGING)}"
        )
    if any(isinstance(part, BitFit) and part.missing == "add" for part in parts_of(method)):
        return "bitfit with missing: add makes biases that engines have no place for; allowed: missing: refuse"
    return None


def is_lora(method: Method) -> bool:
    """True if the artifact is one plain LoRA, which vLLM runs as an adapter."""
    parts = parts_of(method)
    return len(parts) == 1 and isinstance(parts[0], Lora | Pissa | AdaLora)


def keeps_form(method: Method) -> bool:
    """True if the artifact holds the tensors that were trained, under the same method."""
    parts = parts_of(method)
    return not any(
        isinstance(part, Pissa | AdaLora | PTuning)
        or (isinstance(part, Lora) and part.init in ("pissa", "olora"))
        or getattr(part, "prefix_projection", False)
        for part in parts
    )


def _added(method: Method) -> list[Any]:
    return [part for part in parts_of(method) if isinstance(part, Part)]
