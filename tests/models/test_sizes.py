import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM as CausalLM
from transformers import LlamaConfig, PreTrainedConfig

from tests.support.llama_like import CONFIGS, SMALL
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


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 16}},
        {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 16},
        {"rope_scaling": {"type": "su"}, "original_max_position_embeddings": 16},
        {"rope_parameters": {"full_attention": {"rope_type": "longrope", "original_max_position_embeddings": 16}}},
    ],
)
def test_longrope_ends_where_its_factors_change(fields: dict[str, Any]) -> None:
    plain = {"model_type": "llama", "max_position_embeddings": 128} | SMALL
    assert sizes_of(plain, "plain").max_length == 128
    assert sizes_of(plain | fields, "long").max_length == 16
    yarn = {"rope_parameters": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 16}}
    assert sizes_of(plain | yarn, "yarn").max_length == 128


def test_rows_up_to_longrope_s_change_are_computed_alike_alone_and_beside_others() -> None:
    """A row beyond it changes what transformers computes of the others, which is why it is refused."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "rope_theta": 10_000.0}
    config = LlamaConfig(
        **SMALL, max_position_embeddings=128, rope_parameters={**rope, "original_max_position_embeddings": 16}
    )
    most = sizes_of(config.to_dict(), "long").max_length
    assert most == 16
    torch.manual_seed(0)
    model = CausalLM.from_config(config).eval()
    changed = []
    for longer in (most, most + 1):
        rows = torch.randint(97, (2, longer))
        mask = torch.tensor([[1] * 8 + [0] * (longer - 8), [1] * longer])
        with torch.no_grad():
            both, alone = model(rows, attention_mask=mask).logits[0, :8], model(rows[:1, :8]).logits[0]
        changed.append(float((both - alone).abs().max()))
    assert changed[0] < 1e-5 < 1e-3 < changed[1]
