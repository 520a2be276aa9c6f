"""BitFit is the training of the biases themselves, and says so where there are none."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.support.plain_model import IDS, assert_counted, disturb, gradients, gradients_in_half, load, logits
from triptych.errors import UserError
from triptych.methods.bitfit import attach, merged
from triptych.methods.parameters import base_weights
from triptych.models.sizes import model_sizes
from triptych.recipe.method import BitFit
from triptych.recipe.model import Model


def test_gradients_and_outputs_are_those_of_the_biases_themselves(biased_model_dir: Path) -> None:
    model, expected = load(biased_model_dir), load(biased_model_dir)
    before = logits(model)
    attachment = attach(model, BitFit(), "role")
    attachment.activate(True)
    assert torch.equal(logits(model), before)
    own = attachment.parameters()
    biases = {name: p for name, p in expected.named_parameters() if name.endswith("bias")}
    assert own.keys() == biases.keys()
    assert len(own) == 6
    disturb(attachment)
    with torch.no_grad():
        for name, bias in biases.items():
            bias += own[name]
            bias.requires_grad_(True)
    assert (logits(model) - logits(expected)).abs().max() < 1e-12
    logp = expected(IDS).logits[:, :-1].log_softmax(-1).gather(-1, IDS[:, 1:, None])
    logp.mean().backward()
    for name, gradient in gradients(model, attachment).items():
        bias_gradient = biases[name].grad
        assert bias_gradient is not None
        assert (gradient - bias_gradient).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (BitFit(), "no layer of this model has one; allowed: method.missing: add"),
        (BitFit(targets=("q_proj",)), "not each of q_proj of this model has one; allowed: method.missing: add"),
        (BitFit(targets=("query",), missing="add"), "'query' is no layer of this model; allowed: .*q_proj"),
    ],
)
def test_no_bias_to_train_is_refused(tiny_model_dir: Path, method: BitFit, message: str) -> None:
    with pytest.raises(UserError, match=message):
        attach(load(tiny_model_dir), method, "role")
    with pytest.raises(UserError, match=message):
        base_weights.bitfit(method, model_sizes(Model(base=str(tiny_model_dir))))


def test_subset_of_the_paper_query_and_second_layer_of_the_mlp(biased_model_dir: Path) -> None:
    method = BitFit(targets=("q_proj", "down_proj"), missing="add")
    names = {"self_attn.q_proj", "mlp.down_proj"}
    attachment = attach(load(biased_model_dir), method, "role")
    assert attachment.parameters().keys() == {f"model.layers.{i}.{name}.bias" for i in range(2) for name in names}


@pytest.mark.parametrize("folder", ["tiny_model_dir", "biased_model_dir"])
@pytest.mark.parametrize("method", [BitFit(missing="add"), BitFit(targets=("q_proj",), missing="add")])
def test_counts_are_those_of_the_modules(request: pytest.FixtureRequest, folder: str, method: BitFit) -> None:
    path = request.getfixturevalue(folder)
    assert_counted(base_weights.bitfit(method, model_sizes(Model(base=str(path)))), attach(load(path), method, "role"))


@pytest.mark.parametrize(
    ("folder", "method", "flags"),
    [
        ("biased_model_dir", BitFit(), []),
        ("tiny_model_dir", BitFit(missing="add"), ["attention_bias", "mlp_bias"]),
        ("tiny_model_dir", BitFit(targets=("q_proj",), missing="add"), ["attention_bias"]),
        ("tiny_model_dir", BitFit(targets=("down_proj",), missing="add"), ["mlp_bias"]),
    ],
)
def test_merges_into_biases_that_transformers_loads(
    request: pytest.FixtureRequest, folder: str, method: BitFit, flags: list[str], tmp_path: Path
) -> None:
    path = request.getfixturevalue(folder)
    model = load(path, torch.float32)
    attachment = attach(model, method, "role")
    disturb(attachment)
    attachment.activate(True)
    own = {name: p.detach() for name, p in attachment.parameters().items()}
    found = merged(model.config, load_file(path / "model.safetensors"), own)
    assert found is not None
    config, weights = found
    assert [flag for flag in ("attention_bias", "mlp_bias") if getattr(config, flag, False)] == flags
    whole = AutoModelForCausalLM.from_config(config)
    missing = whole.load_state_dict(weights, strict=False)
    assert set(missing.missing_keys) <= {"lm_head.weight"}  # tied
    assert not missing.unexpected_keys
    whole.tie_weights()
    assert (logits(whole.eval()) - logits(model)).abs().max() < 1e-4


def test_an_architecture_without_room_for_the_biases_does_not_merge(biased_model_dir: Path) -> None:
    model = load(biased_model_dir)
    own = attach(model, BitFit(missing="add"), "role").parameters()
    assert merged(model.config, load_file(biased_model_dir / "model.safetensors"), own) is None


@pytest.mark.parametrize("first", ["lora", "bitfit"])
def test_roles_with_lora_and_bitfit_share_a_base(biased_model_dir: Path, first: str) -> None:
    model = load(biased_model_dir)
    base = logits(model)
    wrapped: Any
    if first == "lora":
        wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear"))
        wrapped.base_model.disable_adapter_layers()
    attachment = attach(model, BitFit(), "role")
    if first == "bitfit":
        wrapped = get_peft_model(model, LoraConfig(target_modules="all-linear"))
        wrapped.base_model.disable_adapter_layers()
    disturb(attachment)
    assert torch.equal(logits(model), base)
    attachment.activate(True)
    assert attachment.parameters().keys() == attach(load(biased_model_dir), BitFit(), "role").parameters().keys()
    assert (logits(model) - logits(changed(biased_model_dir, attachment.parameters()))).abs().max() < 1e-12


def changed(folder: Path, changes: dict[str, nn.Parameter]) -> Any:
    model = load(folder)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += changes.get(name, 0)
    return model


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("quantized", [False, True], ids=["plain", "int8"])
def test_half_precision_base_under_autocast(biased_model_dir: Path, dtype: torch.dtype, quantized: bool) -> None:
    added = partial(attach, config=BitFit(missing="add"), role="role")
    found = gradients_in_half(biased_model_dir, added, dtype, quantized=quantized)
    assert len(found) == 14
    assert all(g.abs().max() > 0 for name, g in found.items() if "k_proj" not in name)
