"""Sizes from the model on the meta device: those of the closed form where there is one, and of any other family."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.support.llama_like import CONFIGS
from triptych.errors import UserError
from triptych.methods import METHODS
from triptych.methods.flops import TokenCounts, train_flops
from triptych.methods.parameters.total import added, trained
from triptych.methods.targets import experts_of, linear_layers, shape_of
from triptych.models.meta_sizes import sizes_on_meta
from triptych.models.sizes import FAMILIES, model_sizes, sizes_of, special_float
from triptych.plan import estimate
from triptych.recipe import Full, Lora, Model, load_recipe
from triptych.recipe.method import Freeze

R = 2
SMALL = {"num_hidden_layers": 2}
TINY = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_hidden_layers": 2,
}
DIFFERENT: dict[str, dict[str, Any]] = {
    "gpt2": {"vocab_size": 128, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128},
    "gemma2": TINY | {"head_dim": 16},
    "phi3": TINY | {"pad_token_id": 0},
    "qwen3_moe": TINY | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 16},
    "deepseek_v3": TINY | {"first_k_dense_replace": 1, "n_routed_experts": 8, "n_group": 2, "topk_group": 1},
    "granitemoehybrid": TINY | {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "mamba_n_heads": 8},
    "lfm2": TINY | {"layer_types": ["conv", "full_attention"]},
    "mamba": {"vocab_size": 128, "hidden_size": 64, "num_hidden_layers": 2},
}


def written(config: PreTrainedConfig) -> dict[str, Any]:
    """A config as config.json holds it."""
    found: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return found


def built(config: Mapping[str, Any]) -> Any:
    """The model without weights."""
    settings = json.loads(json.dumps(config), object_hook=special_float)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(settings.pop("model_type"), **settings))


def check(config: Mapping[str, Any]) -> None:
    """Totals, LoRA's tensors and partial tuning's against the model itself; or a refusal where it has no decoder."""
    model = built(config)
    if not hasattr(model, model.base_model_prefix):
        with pytest.raises(UserError, match=f"a {type(model).__name__} has no decoder called"):
            sizes_of(config, "some")
        return
    found = sizes_of(config, "some")
    parameters = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert found.total == sum(torch.Size(shape).numel() for shape in parameters.values())
    assert found.vocab == model.get_input_embeddings().weight.shape[0]
    linear = sum(R * sum(shape_of(layer)) for layer in linear_layers(model).values())
    experts = sum(R * count * (inputs + outputs) for count, inputs, outputs in experts_of(model).values())
    assert sum(tensors.numel for tensors in trained(Lora(r=R), found)) == linear + experts
    counted: Counter[tuple[int, ...]] = Counter()
    for tensors in trained(Full(), found):
        counted[tensors.shape] += tensors.count
    assert counted == Counter(parameters.values())
    assert 0 < found.layer * found.layers <= found.total


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.model_type)
def test_the_closed_form_and_the_model_agree(config: PreTrainedConfig) -> None:
    closed, measured = sizes_of(written(config), "some"), sizes_on_meta(written(config), "some")
    assert replace(measured, measured=None) == closed
    assert (measured.total, measured.layer, measured.embedding) == (closed.total, closed.layer, closed.embedding)
    counts = TokenCounts(10, 4, 55)
    assert train_flops(measured, Lora(r=4), counts) == train_flops(closed, Lora(r=4), counts)
    for name, method in METHODS.items():
        settings: dict[str, Any] = (
            {"vector_length": 16} if name == "vblora" else {"block_size": 16} if name == "c3a" else {}
        )
        settings |= {"missing": "add"} if name == "bitfit" else {}
        settings |= {"layers": 1} if name == "freeze" else {"oft_block_size": 16} if name == "oft" else {}
        made = method.config.model_validate(settings)
        both = [Counter[Any](), Counter[Any]()]
        for counted, sizes in zip(both, (closed, measured), strict=True):
            for tensors in trained(made, sizes):
                counted[tensors.shape, tensors.in_block] += tensors.count
        assert name == "full" or both[0] == both[1], name


@pytest.mark.parametrize("family", DIFFERENT)
def test_any_family_has_sizes(family: str) -> None:
    assert family not in FAMILIES
    check(written(AutoConfig.for_model(family, **DIFFERENT[family])))


@pytest.mark.exhaustive
@pytest.mark.parametrize("family", MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
def test_a_family_has_sizes_or_is_refused(family: str) -> None:
    """With its own defaults and two blocks, or as many as they have; those that transformers cannot build are named."""
    for settings in (SMALL, {}):
        try:
            config = written(AutoConfig.for_model(family, **settings))
            built(config)
        except Exception:  # noqa: BLE001 - a family's code may raise anything
            continue
        check(config)
        return
    with pytest.raises(UserError, match=f"transformers builds no causal model of type '{family}'"):
        sizes_of({"model_type": family}, "some")


def test_experts_are_held_and_few_of_them_computed() -> None:
    config = written(AutoConfig.for_model("qwen3_moe", **DIFFERENT["qwen3_moe"]))
    found, twice = (sizes_of(config | {"num_experts_per_tok": n}, "some") for n in (1, 2))
    expert = 3 * 64 * 32
    assert twice.total == found.total
    assert (twice.layer - found.layer, twice.layers) == (expert, 2)
    assert found.total > found.layers * found.layer + 2 * 3 * expert


def test_a_layer_counts_where_it_stands() -> None:
    """One block of state space, one of attention."""
    config = written(AutoConfig.for_model("granitemoehybrid", **DIFFERENT["granitemoehybrid"]))
    found = sizes_of(config, "some")
    assert {tuple(found.blocks_with(name)) for name in found.targets(("q_proj",))} == {(1,)}
    assert added(Lora(r=R, targets=("q_proj",)), found) == R * (64 + 64)
    assert added(Lora(r=R, targets=("q_proj",), layers=(0,)), found) == 0
    rows = trained(Freeze(layers=1), found)
    assert sum(tensors.numel for tensors in rows) < found.total / 2


@pytest.mark.parametrize("family", ["gpt2", "granitemoehybrid"])
def test_any_family_is_planned_and_its_settings_chosen(family: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(written(AutoConfig.for_model(family, **DIFFERENT[family]))))
    stage = {
        "kind": "sft",
        "data": {"train": {"path": "rows.jsonl"}},
        "train": {"steps": 2, "batch": {"max_length": 64, "micro_tokens": "auto"}},
    }
    recipe = {"name": "any", "model": {"base": str(tmp_path)}, "stages": {"sft": stage}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    found = estimate(load_recipe(tmp_path / "recipe.yaml"), machine="8xh100-80")
    assert found.peak_bytes > 2 * model_sizes(Model(base=str(tmp_path))).total
    assert found.tokens_per_second > 0


def test_a_decoder_that_stands_elsewhere_is_refused() -> None:
    config = TINY | {"model_type": "llama4_text", "num_local_experts": 2, "intermediate_size_mlp": 96}
    with pytest.raises(UserError, match="a Llama4ForCausalLM has no decoder called language_model"):
        sizes_of(config, "llama4")


def test_what_transformers_does_not_know_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.base: mine: transformers builds no causal model of type 'homemade'"):
        sizes_of({"model_type": "homemade"}, "mine")
