"""Int8 base weights, and the optimizers that torch lacks, on the device."""

import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from gradient_cases import CASES, TOLERANCE, gradients, worst_error
from gradient_cases import make_learner as make_tiny_learner
from torch import nn

from result import Figures, Result, Verdict, attempt
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
from triptych.models.base import load_causal_lm
from triptych.models.quantize import Int8Linear, quantize_linears
from triptych.recipe import Optimizer
from triptych.train.roles import RoleModel
from triptych.train.usage import peak_memory

PART = "levers"
STEPS, ROWS = 6, 8
OPTIMIZERS = {
    "adamw": Optimizer(lr=1e-3),
    "adamw_8bit": Optimizer(name="adamw_8bit", lr=1e-3),
    "lion": Optimizer(name="lion", lr=1e-4, betas=(0.9, 0.99)),
    "muon": Optimizer(name="muon", lr=1e-3, momentum=0.95),
    "adamw_schedule_free": Optimizer(name="adamw_schedule_free", lr=1e-3),
}
AS_ON_CPU = 1e-3
"""Largest relative difference of a loss of the tiny model from the CPU's, in float32."""


def check_int8_gradient(folder: Path, device: torch.device) -> tuple[Verdict, Figures]:
    """Adapters on an int8 base have the gradients that they have on its widened weights."""
    objective, make = CASES["language"]
    bases = [load_causal_lm(folder, torch.float32, quantization="int8") for _ in range(2)]
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
            if isinstance(child, Int8Linear):
                linear = nn.Linear(child.in_features, child.out_features, bias=False)
                linear.weight = nn.Parameter(child.weight * child.scale, requires_grad=False)
                setattr(module, name, linear)


def check_base(shape: Shape, device: torch.device, *, int8: bool) -> tuple[Verdict, Figures]:
    """Adapters learn on the frozen base, kept in bfloat16 or in 8 bits."""
    base = make_base(shape, device, torch.bfloat16)
    if int8:
        quantize_linears(base.model)
    model = RoleModel(base, torch.bfloat16)
    add_policy(model, METHODS["lora"])
    return _learns(_steps(model, shape, OPTIMIZERS["adamw"]), device)


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
    yield attempt(PART, "int8 base, gradients, float32", partial(check_int8_gradient, setup.tiny, device))
    for int8 in (False, True):
        case = f"{shape.name}, lora on a base in {'int8' if int8 else 'bfloat16'}"
        yield attempt(PART, case, partial(check_base, shape, device, int8=int8))
    for name in OPTIMIZERS:
        yield attempt(PART, f"{shape.name}, full, {name}", partial(check_optimizer, shape, device, name))
