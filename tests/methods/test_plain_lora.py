"""AdaLoRA, PiSSA and OLoRA as peft saves them become the plain LoRA that computes the same on the same base."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from triptych.errors import UserError
from triptych.methods.plain_lora import as_plain_lora
from triptych.models.lora_fit import check_lora_fit

IDS = torch.randint(5, 300, (2, 11), generator=torch.Generator().manual_seed(3))
PATTERNS = {"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"down_proj": 3}}


def plain(base: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()


def trained(base: Path, config: LoraConfig, folder: Path) -> Path:
    """As peft saves it after training: all factors are moved at random."""
    torch.manual_seed(0)
    adapted = get_peft_model(plain(base), config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if ".lora_" in name:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    adapted.save_pretrained(str(folder))
    return folder


def adalora(base: Path, folder: Path, kept: dict[str, list[bool]] | None) -> Path:
    config = AdaLoraConfig(init_r=5, target_r=2, lora_alpha=7, total_step=10, target_modules=["q_proj", "down_proj"])
    trained(base, config, folder)
    if kept is not None:
        adapted = PeftModel.from_pretrained(plain(base), str(folder))
        adapted.peft_config["default"].rank_pattern = kept
        adapted.save_pretrained(str(folder))
    return folder


def logits(base: Path, adapter: Path) -> torch.Tensor:
    """Of plain peft on the plain base."""
    model = PeftModel.from_pretrained(plain(base), str(adapter)).eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def assert_converted(base: Path, adapter: Path, was: str) -> None:
    before = logits(base, adapter)
    with torch.no_grad():
        assert (before - plain(base)(input_ids=IDS).logits).abs().max() > 0.01, "the adapter shows"
    assert as_plain_lora(adapter, base) == was
    check_lora_fit(adapter, base)
    torch.testing.assert_close(logits(base, adapter), before, atol=1e-4, rtol=1e-4)
    assert as_plain_lora(adapter, base) is None


def prepared(adapter: Path) -> None:
    """As `adapters register` does without the base."""
    as_plain_lora(adapter, None)
    check_lora_fit(adapter, None)


@pytest.mark.parametrize("more", [{}, {"use_rslora": True}, PATTERNS], ids=["plain", "rslora", "patterns"])
@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_a_start_within_the_base_is_converted(
    tiny_model_dir: Path, tmp_path: Path, start: Any, more: dict[str, Any]
) -> None:
    config = LoraConfig(r=4, lora_alpha=6, target_modules="all-linear", init_lora_weights=start, **more)
    assert_converted(tiny_model_dir, trained(tiny_model_dir, config, tmp_path / "adapter"), start)


def test_adalora_is_converted_before_and_after_its_budget(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert_converted(tiny_model_dir, adalora(tiny_model_dir, tmp_path / "whole", None), "AdaLoRA")
    names = [name for name, _ in plain(tiny_model_dir).named_modules() if name.endswith(("q_proj", "down_proj"))]
    kept = {f"{name}.lora_E": [(i + j) % 2 == 0 for j in range(5)] for i, name in enumerate(names)}
    kept[f"{names[1]}.lora_E"] = [False] * 5
    assert_converted(tiny_model_dir, adalora(tiny_model_dir, tmp_path / "pruned", kept), "AdaLoRA")


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("init_lora_weights", "pissa", "and the base is not here; allowed: --base with the base's folder"),
        ("init_lora_weights", "pissa_niter_4", "init_lora_weights pissa_niter_4 moved a part of the base's weights"),
        ("init_lora_weights", "loftq", "init_lora_weights loftq moved a part of the base's weights"),
        ("alora_invocation_tokens", [5, 6], r"alora_invocation_tokens \[5, 6\] is not computed here; allowed: none"),
        ("layer_replication", [[0, 2], [1, 2]], "layer_replication .* is not computed here; allowed: none"),
        ("lora_bias", True, "lora_bias True is not computed here; allowed: False"),
        ("bias", "all", "bias all is not computed here; allowed: none"),
        ("modules_to_save", ["lm_head"], "modules_to_save .* is not computed here; allowed: none"),
    ],
)
def test_what_engines_would_overlook_is_refused(
    tiny_model_dir: Path, tmp_path: Path, field: str, value: Any, said: str
) -> None:
    adapter = trained(tiny_model_dir, LoraConfig(r=4, target_modules=["q_proj"]), tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(UserError, match=said):
        prepared(adapter)


def test_a_tensor_beside_the_factors_is_refused(tiny_model_dir: Path, tmp_path: Path) -> None:
    config = LoraConfig(r=4, target_modules=["q_proj"], trainable_token_indices=[3, 4])
    adapter = trained(tiny_model_dir, config, tmp_path / "adapter")
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"trainable_token_indices": None}))
    with pytest.raises(UserError, match=r"trainable_tokens\S* is no part of a LoRA, and engines would do without it"):
        check_lora_fit(adapter, tiny_model_dir)
