"""Every method on the device: its gradient is that of the CPU, packed and padded, and it learns in bfloat16."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from result import Figures, Result, Verdict, attempt
from shapes import Setup
from tests.support.conformance.cells import Cell, cases
from tests.support.conformance.table import tiny_model
from tests.support.conformance.trial import ROLE, STEPS, STEPS_IN_HALF, batch, learner_of, objective, role_model, step
from tests.support.gradient_cases import gradients, in_float64, worst_error
from triptych.recipe import Optimizer
from triptych.train.group import Group
from triptych.train.learner import Learner

PART = "every_method"
ALLOWED = 1e-5
"""Rotary angles are float32, and sines of them are not the same on every device."""


def check_gradient(case: str, folder: Path, device: torch.device) -> tuple[Verdict, Figures]:
    """In float64, away from the method's start, which may hide some."""
    cell = Cell(case, "language")
    expected = _gradients(cell, folder, torch.device("cpu"), packing=True)
    found = {packing: _gradients(cell, folder, device, packing=packing) for packing in (True, False)}
    error, tensor = max(worst_error(one, expected) for one in found.values())
    return "ok" if error <= ALLOWED else "FAILED", {"error": error, "allowed": ALLOWED, "at": tensor}


def _gradients(cell: Cell, folder: Path, device: torch.device, *, packing: bool) -> dict[str, Tensor]:
    model = role_model(cell, folder, torch.float64, packing=packing)
    with torch.no_grad():
        for parameter in model.parameters_of(ROLE).values():
            parameter.add_(0.02 * torch.randn(parameter.shape).to(parameter))
    learner = Learner(in_float64(model).to(device), {ROLE: Optimizer()}, {ROLE: 1})
    found = gradients(learner, objective(cell), [batch(list(range(8)), beginning=[11, 12, 13])])
    return {name: tensor.cpu() for name, tensor in found.items()}


def check_half(case: str, folder: Path, device: torch.device) -> tuple[Verdict, Figures]:
    """Losses of some steps in bfloat16: they fall."""
    cell = Cell(case, "language" if case in ("full", "freeze") else "classification")
    learner = learner_of(cell, folder, Group(), torch.bfloat16, device)
    losses = [step(learner, cell) for _ in range(STEPS_IN_HALF)]
    return "ok" if losses[-1] < losses[0] else "FAILED", {"first loss": losses[0], "last loss": losses[-1]}


def check(setup: Setup) -> Iterator[Result]:
    chosen = cases() if setup.device.type == "cuda" else cases()[:STEPS]  # on a CPU `make conformance` has them all
    with tempfile.TemporaryDirectory() as name:
        folder = tiny_model(Path(name))
        for case in chosen:
            yield attempt(PART, f"{case}, gradients, float64", partial(check_gradient, case, folder, setup.device))
            yield attempt(PART, f"{case}, bfloat16", partial(check_half, case, folder, setup.device))
