import json
from collections import Counter
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM as CausalLM
from transformers import PreTrainedConfig

from tests.support.llama_like import CONFIGS
from triptych.errors import UserError
from triptych.methods.parameters.total import added, trained
from triptych.models import base, sizes
from triptych.models.sizes import model_sizes, sizes_of
from triptych.recipe import Full, Lora, Model

METHODS = [
    Lora(r=4),
    Lora(r=3, targets=("q_proj", "v_proj")),
    Lora(r=2, targets=("mlp.down_proj", "self_attn.o_proj")),
]


def test_smollm2_has_the_parameters_it_is_known_for() -> None:
    found = model_sizes(Model(base="smollm2-135m-instruct"))
    assert found.total == 134_515_008
    assert added(Lora(r=16), found) == 4_884_480
    assert found.kv_per_token == 2 * 30 * 3 * 64


def test_built_in_models_are_those_that_can_be_resolved() -> None:
    assert set(sizes.BUILT_IN) == set(base.BUILT_IN)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_counts_are_those_of_the_model_that_transformers_builds(config: PreTrainedConfig) -> None:
    with torch.device("meta"):
        model = CausalLM.from_config(config)
    found = sizes_of(json.loads(config.to_json_string(use_diff=False)), "tiny")
    assert found.total == sum(parameter.numel() for parameter in model.parameters())
    shapes = Counter(tuple(parameter.shape) for parameter in model.parameters())
    counted: Counter[tuple[int, ...]] = Counter()
    for tensors in trained(Full(), found):
        counted[tensors.shape] += tensors.count
    assert counted == shapes
    assert found.max_length == config.max_position_embeddings


@pytest.mark.parametrize("method", METHODS, ids=lambda method: str(method.targets))
@pytest.mark.parametrize("config", CONFIGS[:4], ids=lambda config: config.model_type)
def test_lora_counts_are_those_that_peft_trains(config: PreTrainedConfig, method: Lora) -> None:
    targets = method.targets if isinstance(method.targets, str) else list(method.targets)
    model = get_peft_model(CausalLM.from_config(config), LoraConfig(r=method.r, target_modules=targets))
    counted = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    found = sizes_of(json.loads(config.to_json_string(use_diff=False)), "tiny")
    assert added(method, found) == sum(tensors.numel for tensors in trained(method, found)) == counted


def test_sizes_of_a_folder(tiny_model_dir: Path) -> None:
    stored = sum(p.numel() for p in CausalLM.from_pretrained(tiny_model_dir).parameters())
    assert model_sizes(Model(base=str(tiny_model_dir))).total == stored


def test_target_that_is_no_linear_layer() -> None:
    with pytest.raises(UserError) as caught:
        model_sizes(Model(base="smollm2-135m-instruct")).targets(("q_prj",))
    assert str(caught.value) == (
        "method.targets: `q_prj` is no linear layer of this model; did you mean `q_proj`?; allowed: all-linear, "
        "or a list of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
    )


def test_bases_without_known_sizes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no config.json in .*; allowed: a built-in name"):
        model_sizes(Model(base=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "homemade"}')
    with pytest.raises(UserError, match=r"transformers builds no causal model of type 'homemade' from its config.json"):
        model_sizes(Model(base=str(tmp_path)))
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match=r"config.json has no hidden_size"):
        model_sizes(Model(base=str(tmp_path)))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config.json is not JSON"):
        model_sizes(Model(base=str(tmp_path)))
    with pytest.raises(UserError, match=r"called `smollm2-135m`; did you mean `smollm2-135m-instruct`\?; allowed"):
        model_sizes(Model(base="smollm2-135m"))
    with pytest.raises(UserError, match=r"model.base: no config.json of `nobody/nothing` to be had"):
        model_sizes(Model(base="nobody/nothing"))
