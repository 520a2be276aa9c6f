"""Every family computes packed and padded what transformers' own attention computes for each row by itself."""

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from transformers import DynamicCache, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tests.support.families import FAMILIES, each_family, tiny
from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.recipe.matrix import Lora
from triptych.recipe.virtual import PTuningV2

ROWS = (
    [5, 9, 33, 4, 17, 8, 80, 21, 6, 11],
    [5, 9, 33, 4, 17, 60, 61],
    [7, 3],
    [44, 12, 13, 14, 90, 91, 92, 93, 94, 3, 3, 9],
)
"""Two that begin alike, a short one, and one that is longer than a window."""
ROLE = "policy"
LORA = Lora(r=4, alpha=8)
PREFIX = 3


def lone(name: str, dtype: torch.dtype, **settings: Any) -> tuple[PreTrainedModel, RoleModel]:
    """A plain model, and the same in roles."""
    return tiny(name, dtype), RoleModel(tiny(name, dtype), **settings)


def batch(side: str) -> tuple[Tensor, Tensor]:
    width = max(map(len, ROWS)) + 1
    pads = [[0] * (width - len(row)) for row in ROWS]
    ids = torch.tensor([pad + row if side == "left" else row + pad for pad, row in zip(pads, ROWS, strict=True)])
    return ids, (ids > 0).long()


def tolerance(name: str, dtype: torch.dtype) -> float:
    if dtype == torch.float32:
        return 1e-4
    return 1e-5 if FAMILIES[name].float32_inside else 1e-8


def disturb(model: RoleModel) -> None:
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters_of(ROLE).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator).to(parameter)


def loss_of(states: list[Tensor], logits: list[Tensor]) -> Tensor:
    """A sum in which each value of every row has its own weight."""
    found = []
    for number, row in enumerate([*states, *logits]):
        generator = torch.Generator().manual_seed(number)
        found.append((row * torch.randn(row.shape, generator=generator).to(row)).sum())
    return torch.stack(found).sum()


def ours(model: RoleModel, side: str) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    """States and logits of each row, and the gradients of the role's parameters."""
    ids, mask = batch(side)
    with model.use(ROLE), model.autocast():
        hidden = model.hidden(ids, mask)
        states = [row[kept] for row, kept in zip(hidden, mask.bool(), strict=True)]
        logits = [model.logits(row) for row in states]
        named = model.parameters_of(ROLE)
        gradients = torch.autograd.grad(loss_of(states, logits), list(named.values()))
    return states, logits, dict(zip(named, gradients, strict=True))


def alone(model: PreTrainedModel, weights: dict[str, Tensor], **settings: Any) -> tuple[list[Tensor], list[Tensor]]:
    """States and logits of each row by itself, as transformers computes them with these weights."""
    prefix = f"{model.base_model_prefix}."
    own = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    decoder = getattr(model, model.base_model_prefix)
    # Written to round the softmax to float32, whatever the model is in; here it is the reference.
    softmax = torch.nn.functional.softmax

    def whole(x: Tensor, dim: int, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return softmax(x, dim, dtype=torch.promote_types(x.dtype, dtype or x.dtype))

    inputs = [{"input_ids": torch.tensor([row])} | {k: v(len(row)) for k, v in settings.items()} for row in ROWS * 2]
    with patch.object(torch.nn.functional, "softmax", whole):
        states = [functional_call(decoder, own, kwargs=x).last_hidden_state[0] for x in inputs[: len(ROWS)]]
        logits = [functional_call(model, weights, kwargs=x).logits[0] for x in inputs[len(ROWS) :]]
    return states, logits


def with_lora(model: PreTrainedModel, lora: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a LoRA stands for."""
    named, changed = dict(model.named_parameters()), {}
    for name, a in lora.items():
        if ".lora_A." in name:
            path = name.removeprefix("base_model.model.").replace(".base_layer", "").partition(".lora_A.")[0]
            b = LORA.alpha / LORA.r * lora[name.replace("lora_A", "lora_B")]
            if path in named:
                changed[path] = named[path] + of_experts(model.get_submodule(path.rpartition(".")[0]), a, b)
                continue
            product = b @ a
            is_turned = isinstance(model.get_submodule(path), Conv1D)
            changed[f"{path}.weight"] = named[f"{path}.weight"] + (product.T if is_turned else product)
    return changed


def of_experts(module: Any, a: Tensor, b: Tensor) -> Tensor:
    """Each expert's B A, as the module lays its weights out; the rows of A go by expert, the columns of B by rank."""
    count = len(module.down_proj)
    product = torch.einsum("ore,eri->eoi", b.view(len(b), -1, count), a.view(count, -1, a.shape[1]))
    return product.mT if module.is_transposed else product


def expected(plain: PreTrainedModel, model: RoleModel) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
    lora = {name: p.detach().clone().requires_grad_() for name, p in model.parameters_of(ROLE).items()}
    states, logits = alone(plain, with_lora(plain, lora))
    gradients = torch.autograd.grad(loss_of(states, logits), list(lora.values()))
    return states, logits, dict(zip(lora, gradients, strict=True))


def assert_same(found: Any, wanted: Any, allowed: float) -> None:
    (states, logits, gradients), (own_states, own_logits, own_gradients) = found, wanted
    for got, right in zip([*states, *logits], [*own_states, *own_logits], strict=True):
        assert largest(got - right) <= allowed * max(1.0, largest(right))
    assert gradients.keys() == own_gradients.keys()
    for name, right in own_gradients.items():
        # Many families round to float32 in their norms, in the backward pass as well: sums of rows round otherwise.
        of_all = max(map(largest, own_gradients.values()))
        assert largest(gradients[name] - right) <= max(allowed, 1e-6) * max(1.0, of_all), name


def largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())


@pytest.mark.slow
@each_family
def test_packed_and_padded_are_each_row_alone(name: str) -> None:
    """Hidden states, logits and LoRA's gradients in float64, kept and computed again."""
    wanted = None
    for packing, side, checkpointing in ((True, "left", "none"), (True, "right", "full"), (False, "left", "full")):
        plain, model = lone(name, torch.float64, packing=packing, checkpointing=checkpointing)
        assert model.packing is (packing and FAMILIES[name].packed)
        torch.manual_seed(0)
        model.add(ROLE, LORA, trainable=True)
        disturb(model)
        model.train()
        wanted = wanted or expected(plain, model)
        assert_same(ours(model, side), wanted, tolerance(name, torch.float64))


@each_family
def test_float32_is_within_a_ten_thousandth(name: str) -> None:
    for packing in (True, False):
        plain, model = lone(name, torch.float32, packing=packing)
        torch.manual_seed(0)
        model.add(ROLE, LORA, trainable=True)
        disturb(model)
        assert_same(ours(model, "left"), expected(plain, model), tolerance(name, torch.float32))


@each_family
def test_a_prefix_stands_before_every_row_or_is_refused(name: str) -> None:
    method = PTuningV2(num_virtual_tokens=PREFIX, init="random")
    for packing in (True, False):
        plain, model = lone(name, torch.float64, packing=packing)
        if not FAMILIES[name].prefix:
            with pytest.raises(UserError, match=r"method\.name: .*allowed: another method"):
                model.add(ROLE, method, trainable=True)
            continue
        model.add(ROLE, method, trainable=True)
        held = {name: p.detach().clone().requires_grad_() for name, p in model.parameters_of(ROLE).items()}

        def cache(length: int, held: dict[str, Tensor] = held) -> DynamicCache:
            found = DynamicCache()
            for layer in range(len(held) // 2):
                found.update(*(held[f"layer.{layer}.{part}"].transpose(0, 1)[None] for part in ("key", "value")), layer)
            return found

        positions = {"position_ids": lambda length: torch.arange(PREFIX, PREFIX + length)[None]}
        states, logits = alone(plain, {}, past_key_values=cache, use_cache=lambda length: True, **positions)
        gradients = torch.autograd.grad(loss_of(states, logits), list(held.values()))
        wanted = states, logits, dict(zip(held, gradients, strict=True))
        assert_same(ours(model, "left"), wanted, tolerance(name, torch.float64))
