"""Bottleneck adapters compute what the papers say, and leave the base as it is."""

import random
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import Tensor

from tests.support import soft_cases
from tests.support.gradient_cases import language
from tests.support.plain_model import IDS, assert_counted, disturb, gradients, gradients_in_half, load, logits
from triptych import storage
from triptych.errors import UserError
from triptych.forward.export import adapter_of
from triptych.methods.adapter_drop import export_without
from triptych.methods.bottleneck import BottleneckMethod, attach
from triptych.methods.parameters import bottleneck
from triptych.models.adapter import load_adapter, save_adapter
from triptych.models.sizes import model_sizes
from triptych.recipe import Optimizer
from triptych.recipe.bottleneck import Houlsby, ParallelAdapter, Pfeiffer
from triptych.recipe.matrix import Lora
from triptych.recipe.model import Model
from triptych.train.learner import Learner
from triptych.train.tasks.language import LanguageModeling

METHODS: list[BottleneckMethod] = [Houlsby(), Pfeiffer(), ParallelAdapter(reduction_factor=16)]
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


FUNCTIONS: list[BottleneckMethod] = [Pfeiffer(non_linearity=name) for name in ("gelu", "silu", "tanh", "leaky_relu")]


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


def test_robust_adapter_drop_leaves_out_first_layers_of_a_step(tiny_model_dir: Path) -> None:
    """As many in every process; their gradients are zero, and those of the others what they are without them."""
    model = load(tiny_model_dir).train()
    attachment = attach(model, Houlsby(robust_drop_layers=1), "role")
    disturb(attachment)
    attachment.activate(True)
    found = {}
    for step in range(20):
        attachment.begin(step)
        found[step] = logits(model)
        attachment.begin(step)
        assert torch.equal(logits(model), found[step])
    whole = logits(model.eval())
    steps = {step for step, value in found.items() if not torch.equal(value, whole)}
    assert 4 <= len(steps) <= 16
    attachment.begin(min(steps))
    own = gradients(model.train(), attachment)
    assert all((g.abs().max() > 0) == name.startswith("layers.1.") for name, g in own.items())
    dropping = attach(load(tiny_model_dir), Houlsby(drop_layers=1), "role")
    assert dropping.parameters().keys() == own.keys()
    with pytest.raises(UserError, match=r"method.robust_drop_layers: 2 of 2 layers; allowed: 0 to 1"):
        bottleneck.adapters(Houlsby(robust_drop_layers=2), model_sizes(Model(base=str(tiny_model_dir))))


def test_a_learner_draws_what_is_left_out_anew_in_each_step(tiny_model_dir: Path) -> None:
    model = soft_cases.roles(tiny_model_dir)
    model.add("policy", Pfeiffer(robust_drop_layers=1), trainable=True)
    soft_cases.disturb(model, "policy")
    learner = Learner(model, {"policy": Optimizer(name="sgd", momentum=0)}, {"policy": 6}, dropout=True)
    moved = []
    for _ in range(6):
        before = {name: p.detach().clone() for name, p in model.parameters_of("policy").items()}
        learner.step(LanguageModeling("policy"), [language(list(range(8)), torch.float32)])
        after = model.parameters_of("policy")
        moved.append(any(not torch.equal(after[name], p) for name, p in before.items() if "layers.0." in name))
    assert moved == [random.Random(step).randint(0, 1) == 0 for step in range(6)]
    assert len(set(moved)) == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", [Pfeiffer(), (Lora(r=2), Pfeiffer())], ids=["alone", "hybrid"])
def test_an_export_without_the_adapters_of_first_layers(tiny_model_dir: Path, tmp_path: Path, method: Any) -> None:
    """The same as with zero in their place; and it can be taken back."""
    model = soft_cases.roles(tiny_model_dir)
    model.add("policy", method, trainable=True)
    soft_cases.disturb(model, "policy")
    save_adapter(tmp_path / "whole", adapter_of(method, model.adapter("policy"), "policy"), {})
    export_without(tmp_path / "whole", str(tmp_path / "dropped"), 1)
    export_without(tmp_path / "dropped", str(tmp_path / "again"), 0)
    weights = load_adapter(tmp_path / "whole", "policy").weights
    zero = {name: torch.zeros_like(w) if ".up." in name and "layers.0." in name else w for name, w in weights.items()}
    assert any(not torch.equal(zero[name], weights[name]) for name in weights)

    def states(folder: str, given: dict[str, Tensor] | None = None) -> Tensor:
        adapter, fresh = load_adapter(tmp_path / folder, "policy"), soft_cases.roles(tiny_model_dir)
        fresh.add("policy", adapter.method, trainable=False, weights=given or adapter.weights)
        return soft_cases.states(fresh.eval(), "policy", soft_cases.ROWS)

    assert torch.equal(states("dropped"), states("whole", zero))
    assert torch.equal(states("again"), states("whole"))
    assert not torch.equal(states("dropped"), states("whole"))
    storage.verify(str(tmp_path / "dropped"))


@pytest.mark.parametrize(
    ("method", "layers", "message"),
    [
        (Lora(r=2), 1, "--drop-layers: whole has no bottleneck adapters; allowed for houlsby, pfeiffer"),
        (Pfeiffer(), 2, "--drop-layers: 2 of 2 layers; allowed: 0 to 1"),
    ],
)
def test_what_cannot_be_dropped(tiny_model_dir: Path, tmp_path: Path, method: Any, layers: int, message: str) -> None:
    model = soft_cases.roles(tiny_model_dir)
    model.add("policy", method, trainable=True)
    save_adapter(tmp_path / "whole", adapter_of(method, model.adapter("policy"), "policy"), {})
    with pytest.raises(UserError, match=message):
        export_without(tmp_path / "whole", str(tmp_path / "out"), layers)
    assert not (tmp_path / "out").exists()


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
    added = partial(attach, config=Houlsby(), role="role")
    found = gradients_in_half(tiny_model_dir, added, dtype, quantized=quantized)
    assert all(g.abs().max() > 0 for g in found.values())


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
    sizes = model_sizes(Model(base=str(tiny_model_dir)))
    assert_counted(bottleneck.adapters(method, sizes), attach(load(tiny_model_dir), method, "role"))
