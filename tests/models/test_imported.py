"""Adapters that plain peft saved, read as a method of a recipe: the same logits, or a refusal that names the field."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM

from triptych.errors import UserError
from triptych.forward.roles import RoleModel
from triptych.models.adapter import load_adapter
from triptych.models.base import load_causal_lm

IDS = torch.randint(5, 300, (1, 9), generator=torch.Generator().manual_seed(3))
LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}
CONFIGS: dict[str, PeftConfig] = {
    "plain": LoraConfig(**LORA),
    "rslora": LoraConfig(**LORA, use_rslora=True),
    "alpha_pattern": LoraConfig(**LORA, alpha_pattern={"q_proj": 64, "none": 3}),
    "rank_pattern": LoraConfig(**LORA, rank_pattern={"layers.1.self_attn.q_proj": 2}),
    "dora": LoraConfig(**LORA, use_dora=True),
    "regular expression": LoraConfig(**LORA | {"target_modules": r".*\.1\..*(up|down)_proj"}),
    "chosen layers": LoraConfig(**LORA, layers_to_transform=[1]),
    "all linear": LoraConfig(**LORA | {"target_modules": "all-linear"}, init_lora_weights="gaussian"),
    "prompt": PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "prefix": PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
}


def saved(base: Path, folder: Path, config: PeftConfig) -> torch.Tensor:
    """Save an adapter of random weights by peft alone; its logits."""
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and "magnitude" not in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    model.save_pretrained(str(folder))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).eval()
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=IDS).logits[:, -IDS.shape[1] :]
    return logits


@pytest.mark.parametrize("case", CONFIGS)
def test_it_computes_what_peft_computes(case: str, tmp_path: Path, tiny_model_dir: Path) -> None:
    expected = saved(tiny_model_dir, tmp_path / "adapter", CONFIGS[case])
    adapter = load_adapter(tmp_path / "adapter", "policy")
    model = RoleModel(load_causal_lm(tiny_model_dir, torch.float32))
    method, weights = adapter.to_go_on
    model.add("policy", method, trainable=True, weights=weights)
    with torch.no_grad(), model.use("policy"):
        found = model.logits(model.hidden(IDS, torch.ones_like(IDS)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    with torch.no_grad():
        assert (plain(input_ids=IDS).logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type IA3 is not read from elsewhere; allowed: LORA"),
        ({"bias": "all"}, "bias all is not computed here; allowed: none"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save .*lm_head.* is not computed here"),
        ({"target_parameters": ["experts.gate"]}, "target_parameters is not read from elsewhere"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights pissa moved a part of the base"),
        ({"of_the_future": 3}, "of_the_future 3 is not computed here"),
        ({"r": 4096}, "asks for what no method has: (.|\n)*less than or equal to 512"),
    ],
)
def test_what_is_not_computed_here_is_refused(
    fields: dict[str, Any], message: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    saved(tiny_model_dir, tmp_path / "adapter", CONFIGS["plain"])
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))
    with pytest.raises(UserError, match=message):
        load_adapter(tmp_path / "adapter", "policy")


def test_embeddings_are_no_linear_layers(tmp_path: Path, tiny_model_dir: Path) -> None:
    saved(tiny_model_dir, tmp_path / "adapter", LoraConfig(**LORA | {"target_modules": ["embed_tokens", "q_proj"]}))
    with pytest.raises(UserError, match=r"embed_tokens.* is no part of a LoRA of linear layers"):
        load_adapter(tmp_path / "adapter", "policy")


def test_a_folder_of_neither_is_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither triptych\.json nor adapter_config\.json"):
        load_adapter(tmp_path, "policy")
