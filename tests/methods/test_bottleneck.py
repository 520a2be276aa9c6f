"""Bottleneck adapters compute what the papers say, and leave the base as it is."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from plain import IDS, disturb, gradients, load, logits
from torch import Tensor

from triptych.errors import UserError
from triptych.methods import counts
from triptych.methods.bottleneck import Config, attach
from triptych.models.quantize import quantize_linears
from triptych.models.sizes import model_sizes
from triptych.recipe.method import Houlsby, ParallelAdapter, Pfeiffer
from triptych.recipe.model import Model

METHODS: list[Config] = [Houlsby(), Pfeiffer(), ParallelAdapter(reduction_factor=16)]
ids = [method.name for method in METHODS]


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_starts_as_the_base_and_keeps_its_names(tiny_model_dir: Path, method: Any) -> None:
    model = load(tiny_model_dir)
    before, names = logits(model), {name: p.clone() for name, p in model.named_parameters()}
    attachment = attach(model, method, "role")
    attachment.activate(True)
    assert torch.equal(logits(model), before)
    after = dict(model.named_parameters())
    assert all(torch.equal(after[name], p) for name, p in names.items())
    assert all(p.dtype == torch.float64 for p in attachment.parameters().values())


FUNCTIONS: list[Config] = [Pfeiffer(non_linearity=name) for name in ("gelu", "silu", "tanh", "leaky_relu")]


@pytest.mark.parametrize(
    "method", METHODS + FUNCTIONS, ids=ids + [f"{method.name}-{method.non_linearity}" for method in FUNCTIONS]
)
def test_computes_the_papers_formula(tiny_model_dir: Path, method: Any) -> None:
    model, expected = load(tiny_model_dir), load(tiny_model_dir)
    method = method.model_copy(update={"scaling": 1.5})
    attachment = attach(model, method, "role")
    disturb(attachment)
    attachment.activate(True)
    own = attachment.parameters()
    for number, block in enumerate(expected.model.layers):
        for sublayer in method.sublayers:
            wrap(getattr(block, sublayer), own, f"layers.{number}.{sublayer}", method)
    assert (logits(model) - logits(expected)).abs().max() < 1e-12
    assert (logits(model) - logits(load(tiny_model_dir))).abs().max() > 0.1
    assert all(gradient.abs().max() > 0 for gradient in gradients(model, attachment).values())


def wrap(host: Any, own: Mapping[str, Tensor], name: str, method: Any) -> None:
    forward = host.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        y = output[0] if isinstance(output, tuple) else output
        z = args[0] if method.name == "parallel_adapter" else y
        down = F.linear(z, own[f"{name}.down.weight"], own[f"{name}.down.bias"])
        inner = getattr(F, method.non_linearity)(down)
        y = y + 1.5 * F.linear(inner, own[f"{name}.up.weight"], own[f"{name}.up.bias"])
        return (y, *output[1:]) if isinstance(output, tuple) else y

    host.forward = changed


def test_roles_share_a_base_and_none_disturbs_it(tiny_model_dir: Path) -> None:
    model = load(tiny_model_dir)
    base = logits(model)
    roles = {method.name: attach(model, method, method.name) for method in METHODS}
    twin = attach(model, Pfeiffer(), "twin")
    found = {}
    for number, (role, attachment) in enumerate((roles | {"twin": twin}).items()):
        disturb(attachment, seed=number)
        attachment.activate(True)
        found[role] = logits(model)
        attachment.activate(False)
        assert torch.equal(logits(model), base)
    assert all((a - b).abs().max() > 0.01 for x, a in found.items() for y, b in found.items() if x != y)
    roles["houlsby"].activate(True)
    assert torch.equal(logits(model), found["houlsby"])
    twin.activate(True)
    roles["houlsby"].activate(False)
    assert not torch.equal(logits(model), base)


def test_adapter_drop_leaves_out_the_first_layers_outside_training(tiny_model_dir: Path) -> None:
    model = load(tiny_model_dir)
    every, dropping = attach(model, Houlsby(), "every"), attach(model, Houlsby(drop_layers=1), "dropping")
    disturb(every)
    with torch.no_grad():
        for parameter, same in zip(dropping.parameters().values(), every.parameters().values(), strict=True):
            parameter.copy_(same)
    every.activate(True)
    with_all = logits(model)
    dropping.activate(True)
    dropped = logits(model)
    assert torch.equal(logits(model.train()), with_all)
    with torch.no_grad():
        for name, parameter in every.parameters().items():
            if name.startswith("layers.0."):
                parameter.zero_()
    every.activate(True)
    assert torch.equal(logits(model.eval()), dropped)
    assert not torch.equal(dropped, with_all)
    with pytest.raises(UserError, match=r"method.drop_layers: 2 of 2 layers; allowed: 0 to 1"):
        attach(model, Houlsby(drop_layers=2), "odd")


def test_dropout_acts_in_training_alone(tiny_model_dir: Path) -> None:
    model = load(tiny_model_dir)
    attachment = attach(model, Pfeiffer(dropout=0.5), "role")
    disturb(attachment)
    attachment.activate(True)
    assert torch.equal(logits(model), logits(model))
    assert not torch.equal(logits(model.train()), logits(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "int8"])
def test_half_precision_base_under_autocast(tiny_model_dir: Path, dtype: torch.dtype, quantized: bool) -> None:
    model = load(tiny_model_dir, dtype)
    if quantized:
        quantize_linears(model.model)
    attachment = attach(model, Houlsby(), "role")
    attachment.activate(True)
    with torch.autocast("cpu", dtype):
        before = logits(model)
    disturb(attachment)
    with torch.autocast("cpu", dtype):  # another context: each casts a parameter once
        found = gradients(model, attachment)
        assert (logits(model) - before).abs().max() > 0.1
    assert all(g.dtype == torch.float32 and g.isfinite().all() and g.abs().max() > 0 for g in found.values())


def test_lora_on_all_linear_layers_does_not_find_the_adapters(tiny_model_dir: Path) -> None:
    model = load(tiny_model_dir)
    attachment = attach(model, Houlsby(), "role")
    get_peft_model(model, LoraConfig(target_modules="all-linear"))
    assert not any("bottleneck" in name and "lora" in name for name, _ in model.named_parameters())
    attachment.activate(True)
    disturb(attachment)
    assert model(IDS).logits.isfinite().all()


@pytest.mark.parametrize("method", METHODS, ids=ids)
def test_counts_are_those_of_the_modules(tiny_model_dir: Path, method: Any) -> None:
    counted: Counter[tuple[int, ...]] = Counter()
    for tensors in counts.bottleneck(method, model_sizes(Model(base=str(tiny_model_dir)))):
        counted[tensors.shape] += tensors.count
    attachment = attach(load(tiny_model_dir), method, "role")
    assert counted == Counter(tuple(p.shape) for p in attachment.parameters().values())
