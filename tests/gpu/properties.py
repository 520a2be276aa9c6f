"""The gradient does not depend on how it is computed: cut, packed, padded, in chunks, with activations forgotten.

The cases and tolerances are those of the tests in tests/train; here they run on the device.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from result import Figures, Result, Verdict, attempt
from shapes import Setup
from tests.support.gradient_cases import CASES, TOLERANCE, gradients, language, make_learner, make_model, worst_error
from triptych.data.batches import pad_right
from triptych.forward.attention import lay_out, packed_attention
from triptych.forward.roles import RoleModel
from triptych.train.batch import Batch
from triptych.train.learner import Learner, Objective

PART = "properties"
ALL = list(range(8))
TIMES_PADDED = 2.0
"""How much larger the bfloat16 error of packed rows may be than that of padded ones."""
HALF_ERROR = 1e-2
"""Relative error of attention in bfloat16, whose own is 2^-8; errors of rounding average out."""

Tensors = dict[str, Tensor]
Comparison = tuple[str, Tensors, Tensors]
"""Where, what was found, what is expected."""


@dataclass(frozen=True)
class Tiny:
    """The tiny model on the device, in one precision."""

    folder: Path
    device: torch.device
    dtype: torch.dtype

    def model(self, **settings: Any) -> RoleModel:
        return make_model(self.folder, self.dtype, **settings).to(self.device)

    def gradients(self, objective: Objective, batch: Batch, **settings: Any) -> Tensors:
        return gradients(make_learner(self.model(roles=(objective.role,), **settings)), objective, [batch])


def cuts(tiny: Tiny) -> Iterator[Comparison]:
    for case, (objective, make) in CASES.items():
        learner = make_learner(tiny.model())
        whole = gradients(learner, objective, [make(ALL, tiny.dtype)])
        for size in (1, 2, 4):
            cut = [make(ALL[start : start + size], tiny.dtype) for start in range(0, 8, size)]
            yield f"{case}, {size} rows at once", gradients(learner, objective, [*cut, None]), whole


def padding_side(tiny: Tiny) -> Iterator[Comparison]:
    for case, packing in itertools.product(("language", "pairs"), (True, False)):
        objective, make = CASES[case]
        learner = make_learner(tiny.model(packing=packing))
        right = make(ALL, tiny.dtype)
        order = torch.argsort(right["mask"], dim=1, stable=True)  # padding first, the rest in its order
        left = {name: column.gather(1, order) for name, column in right.items()}
        found, expected = (gradients(learner, objective, [batch]) for batch in (left, right))
        yield f"{case}, packing {packing}", found, expected


def against_default(tiny: Tiny, *, settings: list[dict[str, Any]]) -> Iterator[Comparison]:
    """Every objective and method with each of `settings`, against the defaults."""
    for (case, (objective, make)), method in itertools.product(CASES.items(), ("lora", "full")):
        batch = make(ALL, tiny.dtype)
        plain = tiny.gradients(objective, batch, method=method)
        for chosen in settings:
            yield f"{case}, {method}, {chosen}", tiny.gradients(objective, batch, method=method, **chosen), plain


def other_roles(tiny: Tiny) -> Iterator[Comparison]:
    """A step of one role leaves the other as it was."""
    learner = make_learner(tiny.model())
    before = {name: tensor.detach().clone() for name, tensor in learner.model.parameters_of("critic").items()}
    learner.step(CASES["language"][0], [language(ALL, tiny.dtype)])
    yield "critic", {name: tensor.detach() for name, tensor in learner.model.parameters_of("critic").items()}, before


def going_on(tiny: Tiny) -> Iterator[Comparison]:
    """Losses of four steps, and of the last two from the state after the first two."""
    straight, first, second = (make_learner(tiny.model(roles=("policy",))) for _ in range(3))
    expected = _losses(straight, range(4), tiny.dtype)
    _losses(first, range(2), tiny.dtype)
    state = first.state()
    second.load_state({one.name: one.values.clone().view(one.shape) for one in state.slices}, state.numbers)
    yield "policy", {"loss": _losses(second, range(2, 4), tiny.dtype)}, {"loss": expected[2:]}


def _losses(learner: Learner, steps: range, dtype: torch.dtype) -> Tensor:
    objective = CASES["language"][0]
    reports = [learner.step(objective, [language([number, number + 1], dtype)]) for number in steps]
    return torch.tensor([report.metrics["loss"] for report in reports], dtype=torch.float64)


PROPERTIES: dict[str, Callable[[Tiny], Iterator[Comparison]]] = {
    "micro-batches": cuts,
    "padding side": padding_side,
    "packed, padded": partial(against_default, settings=[{"packing": False}]),
    "chunked loss": partial(against_default, settings=[{"loss_chunk": 3}, {"loss_chunk": None}]),
    "checkpointing": partial(against_default, settings=[{"checkpointing": "selective"}, {"checkpointing": "full"}]),
    "other roles untouched": other_roles,
    "goes on from its state": going_on,
}


def check_property(compare: Callable[[Tiny], Iterator[Comparison]], tiny: Tiny) -> tuple[Verdict, Figures]:
    found = [(*worst_error(found, expected), where) for where, found, expected in compare(tiny)]
    error, tensor, where = max(found)
    allowed = TOLERANCE[tiny.dtype]
    figures: Figures = {"error": error, "allowed": allowed, "comparisons": len(found)}
    if error > allowed:
        figures |= {"at": f"{where}: {tensor}"}
    return "ok" if error <= allowed else "FAILED", figures


def check_half(folder: Path, device: torch.device, case: str, checkpointing: str) -> tuple[Verdict, Figures]:
    """bfloat16, packed (on a GPU by flash attention), is as near to float32 as bfloat16, padded, is."""
    objective, make = CASES[case]
    single, half = (Tiny(folder, device, dtype) for dtype in (torch.float32, torch.bfloat16))
    batch, exact = make(ALL, torch.float32), single.model(roles=(objective.role,), packing=False)
    expected = gradients(make_learner(exact), objective, [batch])
    errors = []
    for settings in ({"packing": False}, {"checkpointing": checkpointing}):
        model = half.model(roles=(objective.role,), **settings)
        with torch.no_grad():
            for name, parameter in model.parameters_of(objective.role).items():
                parameter.copy_(exact.parameters_of(objective.role)[name])
        errors.append(_relative(gradients(make_learner(model), objective, [batch]), expected))
    padded, packed = errors
    good = 0 < packed <= TIMES_PADDED * padded < 0.5
    return "ok" if good else "FAILED", {"error": packed, "padded": padded, "allowed": TIMES_PADDED * padded}


def check_attention(device: torch.device, window: int | None, before: int = 0) -> tuple[Verdict, Figures]:
    """Output and gradients of the attention over packed rows with shared beginnings, bfloat16 against float32.

    `before`: keys and values that stand before every row.
    """
    generator = torch.Generator().manual_seed(0)
    start = torch.randint(300, (70,), generator=generator).tolist()
    ids, mask = pad_right([[*start, 1, 2, 3], [*start, 4, *start], start[::-1], start[:20]], 0)
    layout = lay_out(ids.to(device), mask.to(device), prefix_length=before)
    heads = [torch.randn(1, count, len(layout.ids), 64, generator=generator) for count in (6, 2, 2)]
    own = torch.randn(2, 2, before, 64, generator=generator)
    outer = torch.randn(1, len(layout.ids), 6, 64, generator=generator).bfloat16()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        query, key, value, prefix = (x.bfloat16().to(device, dtype).requires_grad_() for x in (*heads, own))
        rows = len(layout.new)
        placed = replace(layout, prefix=lambda *_, p=prefix, n=rows: p[:, None].expand(-1, n, -1, -1, -1).unbind())
        out, _ = packed_attention(torch.nn.Module(), query, key, value, None, layout=placed, sliding_window=window)
        gradients = torch.autograd.grad(out, (query, key, value, prefix), outer.to(device, dtype))
        names = ("output", "query", "key", "value", "prefix")[: 5 if before else 4]
        found.append(dict(zip(names, (out.detach(), *gradients), strict=False)))
    exact, half = found
    errors = {name: _relative({name: half[name]}, {name: exact[name]}) for name in exact}
    good = all(0 < error <= HALF_ERROR for error in errors.values())
    return "ok" if good else "FAILED", {**errors, "allowed": HALF_ERROR}


def _relative(found: Tensors, expected: Tensors) -> float:
    """|found - expected| / |expected| over all elements of all tensors."""
    off = sum((found[name].double() - tensor.double()).square().sum() for name, tensor in expected.items())
    size = sum(tensor.double().square().sum() for tensor in expected.values())
    return float((torch.as_tensor(off) / size).sqrt())


def check(setup: Setup) -> Iterator[Result]:
    folder, device = setup.tiny, setup.device
    for dtype in TOLERANCE:
        for name, compare in PROPERTIES.items():
            tiny = Tiny(folder, device, dtype)
            precision = str(dtype).removeprefix("torch.")
            yield attempt(PART, f"{name}, {precision}", partial(check_property, compare, tiny))
    for window, before in itertools.product((None, 16), (0, 24)):
        name = f"attention of packed rows, window {window}, prefix {before}, bfloat16"
        yield attempt(PART, name, partial(check_attention, device, window, before))
    for case, kind in itertools.product(("language", "pairs"), ("none", "selective", "full")):
        name = f"{case}, packed, checkpointing {kind}, bfloat16"
        yield attempt(PART, name, partial(check_half, folder, device, case, kind))
