"""Base weights in 8 and 4 bits, and the optimizers that torch lacks, on the device."""

import importlib.util
import itertools
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from result import Figures, Result, Verdict, attempt, release
from shapes import (
    METHODS,
    OBJECTIVE,
    TINY,
    Setup,
    Shape,
    add_policy,
    batches_of,
    make_base,
    make_learner,
    make_model,
    random_rows,
)
from tests.support.gradient_cases import CASES, TOLERANCE, gradients, worst_error
from tests.support.gradient_cases import make_learner as make_tiny_learner
from triptych.forward.process_memory import peak_memory
from triptych.forward.roles import RoleModel
from triptych.methods import METHODS as KNOWN
from triptych.models.base import load_causal_lm
from triptych.models.quantize import Int8Linear, quantize_linears
from triptych.recipe import Method, Optimizer
from triptych.recipe.bottleneck import Pfeiffer
from triptych.recipe.matrix import AdaLora
from triptych.recipe.method import parts_of
from triptych.recipe.model import Quantization
from triptych.recipe.virtual import PTuningV2

PART = "levers"
STEPS, ROWS = 6, 8
OPTIMIZERS = {
    "adamw": Optimizer(lr=1e-3),
    "adamw_8bit": Optimizer(name="adamw_8bit", lr=1e-3),
    "lion": Optimizer(name="lion", lr=1e-4, betas=(0.9, 0.99)),
    "muon": Optimizer(name="muon", lr=1e-3, momentum=0.95),
    "adamw_schedule_free": Optimizer(name="adamw_schedule_free", lr=1e-3),
}
ON_BASE: dict[str, Method] = {
    "lora": METHODS["lora"],
    "adalora": AdaLora(),
    "p_tuning_v2": PTuningV2(init="random"),
    "pfeiffer": Pfeiffer(),
}
AS_ON_CPU = 1e-3
"""Largest relative difference of a loss of the tiny model from the CPU's, in float32."""


def check_gradient(folder: Path, device: torch.device, quantization: Quantization) -> tuple[Verdict, Figures]:
    """Adapters on a quantised base have the gradients that they have on its widened weights."""
    objective, make = CASES["language"]
    bases = [load_causal_lm(folder, torch.float32, quantization=quantization) for _ in range(2)]
    _widen(bases[1])
    found = []
    for base in bases:
        torch.manual_seed(0)
        model = RoleModel(base.to(device))
        add_policy(model, METHODS["lora"])
        with torch.no_grad():
            for name, parameter in model.parameters_of("policy").items():
                if "lora_B" in name:
                    parameter.normal_(std=0.1)
        found.append(gradients(make_tiny_learner(model), objective, [make(list(range(8)), torch.float32)]))
    error, tensor = worst_error(*found)
    allowed = TOLERANCE[torch.float32]
    return "ok" if error <= allowed else "FAILED", {"error": error, "allowed": allowed, "at": tensor}


def _widen(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, Int8Linear) or type(child).__name__ == "Linear4bit":
                wide = _wide(child)
                linear = nn.Linear(wide.shape[1], wide.shape[0], bias=False)
                linear.weight = nn.Parameter(wide, requires_grad=False)
                setattr(module, name, linear)


def _wide(linear: Any) -> torch.Tensor:
    if isinstance(linear, Int8Linear):
        return linear.weight * linear.scale
    functional = importlib.import_module("bitsandbytes.functional")
    wide: torch.Tensor = functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    return wide


def check_base(
    shape: Shape, device: torch.device, quantization: Quantization | None, method: Method
) -> tuple[Verdict, Figures]:
    """Adapters learn on the frozen base, kept in bfloat16, in 8 or in 4 bits."""
    base = make_base(shape, device, torch.bfloat16)
    if quantization == "int8":
        quantize_linears(base.model)
    if quantization == "nf4":
        with tempfile.TemporaryDirectory() as folder:
            base.save_pretrained(folder)
            del base
            release()
            base = load_causal_lm(Path(folder), torch.bfloat16, quantization="nf4")
    held = torch.cuda.memory_allocated(device) / 1e9 if device.type == "cuda" else 0.0
    model = RoleModel(base, torch.bfloat16)
    add_policy(model, method)
    rate = max(KNOWN[part.name].learning_rates[1] for part in parts_of(method))
    verdict, figures = _learns(_steps(model, shape, Optimizer(lr=rate)), device)
    return verdict, figures | {"GB of the base": held}


def check_optimizer(shape: Shape, device: torch.device, name: str) -> tuple[Verdict, Figures]:
    """All weights learn; the tiny model's losses are those of the CPU."""
    model = make_model(shape, METHODS["full"], device, torch.bfloat16)
    verdict, figures = _learns(_steps(model, shape, OPTIMIZERS[name]), device)
    del model
    here, cpu = (
        _steps(make_model(TINY, METHODS["full"], torch.device("cpu"), torch.float32).to(on), TINY, OPTIMIZERS[name])
        for on in (device, torch.device("cpu"))
    )
    off = max(abs(a / b - 1) for a, b in zip(here[0], cpu[0], strict=True))
    figures |= {"off the CPU by": off, "allowed": AS_ON_CPU}
    return verdict if off <= AS_ON_CPU else "FAILED", figures


def _steps(model: RoleModel, shape: Shape, optimizer: Optimizer) -> tuple[list[float], float]:
    """Losses of some steps on the same rows, and seconds a step after the first."""
    learner = make_learner(model, optimizer)
    batches = batches_of(random_rows(shape, ROWS), 1 << 30)
    losses, ends = [], []
    for _ in range(STEPS):
        losses.append(learner.step(OBJECTIVE, batches).metrics["loss"])
        ends.append(time.perf_counter())
    return losses, (ends[-1] - ends[0]) / (STEPS - 1)


def _learns(steps: tuple[list[float], float], device: torch.device) -> tuple[Verdict, Figures]:
    losses, seconds = steps
    figures: Figures = {"first loss": losses[0], "last loss": losses[-1], "seconds a step": seconds}
    if device.type == "cuda":
        figures["peak GB"] = peak_memory(device) / 1e9
    return "ok" if losses[-1] < losses[0] else "FAILED", figures


def check(setup: Setup) -> Iterator[Result]:
    shape, device = setup.shapes[0], setup.device
    kinds: list[Quantization] = ["int8"]
    if device.type == "cuda" and importlib.util.find_spec("bitsandbytes"):
        kinds.append("nf4")
    for kind in kinds:
        yield attempt(PART, f"{kind} base, gradients, float32", partial(check_gradient, setup.tiny, device, kind))
    for quantization, (name, method) in itertools.product((None, *kinds), ON_BASE.items()):
        case = f"{shape.name}, {name} on a base in {quantization or 'bfloat16'}"
        yield attempt(PART, case, partial(check_base, shape, device, quantization, method))
    for name in OPTIMIZERS:
        yield attempt(PART, f"{shape.name}, full, {name}", partial(check_optimizer, shape, device, name))
