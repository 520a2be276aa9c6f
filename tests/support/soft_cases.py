"""Rows behind prompts and prefixes, and what plain peft makes of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor

from tests.support.gradient_cases import in_float64
from triptych.forward.export import adapter_of
from triptych.forward.roles import RoleModel
from triptych.methods.parameters.total import trained
from triptych.models.adapter import load_adapter, save_adapter
from triptych.models.base import load_causal_lm
from triptych.models.sizes import model_sizes
from triptych.recipe.method import Method
from triptych.recipe.model import Model

ROWS = [[5, 6, 7, 8, 9], [5, 6, 7, 20, 21, 22, 23], [40, 41], [5, 6, 7, 8, 9, 10], [5, 6, 7, 8, 9]]
"""Some begin alike, and two are the same."""

LAYOUTS: dict[str, dict[str, Any]] = {
    "packed": {},
    "padded": {"packing": False},
    "left": {"packing": False, "left": True},
    "checkpointed": {"checkpointing": "full"},
    "selective": {"checkpointing": "selective"},
    "padded checkpointed": {"packing": False, "checkpointing": "full"},
    "one by one": {"alone": True},
}


def batch(rows: list[list[int]], *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, T]."""
    width = max(map(len, rows))
    ids, mask = torch.full((len(rows), width), 3), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(width - len(row), width) if left else slice(0, len(row))
        ids[number, place], mask[number, place] = torch.tensor(row), 1
    return ids, mask


def roles(folder: Path, dtype: torch.dtype = torch.float32, **settings: Any) -> RoleModel:
    return RoleModel(load_causal_lm(folder, dtype), **settings)


def states(model: RoleModel, role: str, rows: list[list[int]], *, left: bool = False) -> Tensor:
    """Last hidden states of all tokens of all rows: [n, d]."""
    ids, mask = batch(rows, left=left)
    with model.use(role):
        return model.hidden(ids, mask)[mask.bool()]


def disturb(model: RoleModel, role: str, scale: float = 0.05) -> None:
    """Away from where the method starts, the same for every model."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters_of(role).values():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator).to(parameter))


def states_and_gradients(folder: Path, method: Any, layout: dict[str, Any]) -> dict[str, Tensor]:
    """In float64: hidden states, and the gradient of a sum of them, each weighted differently."""
    settings = dict(layout)
    left, alone = settings.pop("left", False), settings.pop("alone", False)
    torch.manual_seed(0)
    model = roles(folder, **settings)
    model.add("policy", method, trainable=True)
    disturb(in_float64(model), "policy")
    model.train()
    with model.use("policy"):
        calls = [[row] for row in ROWS] if alone else [ROWS]
        found = torch.cat([states(model, "policy", call, left=left) for call in calls])
        weights = torch.arange(found.numel(), dtype=found.dtype).sin().view_as(found)
        (found * weights).sum().backward()
    named = model.parameters_of("policy")
    return {"states": found.detach()} | {name: p.grad for name, p in named.items() if p.grad is not None}


def assert_adds_what_the_table_says(folder: Path, method: Method) -> None:
    """In float32, alone or as a hybrid."""
    model = roles(folder)
    model.add("policy", method, trainable=True)
    predicted = [t.shape for t in trained(method, model_sizes(Model(base=str(folder)))) for _ in range(t.count)]
    assert sorted(predicted) == sorted(tuple(p.shape) for p in model.parameters_of("policy").values())
    assert all(p.dtype == torch.float32 for p in model.parameters_of("policy").values())


def assert_roles_differ(folder: Path, methods: Mapping[str, Any], trains: str) -> None:
    """Each computes as it does alone, and the base as it was. `trains`: the one role that does."""
    model = roles(folder)
    base = states(model, "base", ROWS)
    for role, method in methods.items():
        model.add(role, method, trainable=role == trains)
        disturb(model, role)
    found = {role: states(model, role, ROWS) for role in methods}
    assert torch.equal(states(model, "base", ROWS), base)
    assert all((a - b).abs().max() > 1e-3 for x, a in found.items() for y, b in found.items() if x != y)
    for role, method in methods.items():
        alone = roles(folder)
        alone.add(role, method, trainable=True, weights=model.adapter(role))
        assert torch.equal(states(alone, role, ROWS), found[role])
        assert all(p.requires_grad == (role == trains) for p in model.parameters_of(role).values())


def assert_as_in_peft(folder: Path, method: Any, place: Path) -> None:
    """The exported files, loaded by plain peft beside the plain model, give the logits of training."""
    model = roles(folder)
    model.add("policy", method, trainable=True)
    disturb(model, "policy")
    save_adapter(place, adapter_of(method, model.adapter("policy"), "policy"), {})
    plain = PeftModel.from_pretrained(load_causal_lm(folder, torch.float32), place).eval()
    ids, mask = batch(ROWS)
    virtual = 0 if (place / "prefix.safetensors").exists() else method.num_virtual_tokens  # peft gives their logits too
    with torch.no_grad():
        expected = plain(input_ids=ids, attention_mask=mask).logits[:, virtual:][mask.bool()]
        found = model.logits(states(model, "policy", ROWS))
    base = model.logits(states(model, "base", ROWS)).detach()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (found - base).abs().max() > 0.01 * base.abs().max()

    kept, again = load_adapter(place, "policy"), roles(folder)
    again.add("policy", kept.method, trainable=False, weights=kept.weights)
    assert (again.logits(states(again, "policy", ROWS)) - expected).abs().max() <= 1e-5 * expected.abs().max()
    if (place / "state.safetensors").exists():
        again.add("trained", method, trainable=True, weights=load_file(place / "state.safetensors"))
        assert torch.equal(states(again, "trained", ROWS), states(model, "policy", ROWS))
    else:
        assert kept.method == method
