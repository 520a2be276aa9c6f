"""`adapters merge`: a version and its base become one model, which plain transformers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from triptych.cli import app
from triptych.errors import UserError
from triptych.forward.export import adapter_of
from triptych.forward.roles import RoleModel
from triptych.models.adapter import save_adapter
from triptych.models.base import fingerprint, load_causal_lm
from triptych.recipe import Method
from triptych.recipe.bottleneck import Houlsby
from triptych.recipe.matrix import Ia3, Lora
from triptych.registry import Registry

IDS = torch.randint(5, 300, (1, 9), generator=torch.Generator().manual_seed(3))


def registered(folder: Path, base: Path, method: Method, **about: Any) -> torch.Tensor:
    """Register an adapter of random weights as `a@1`; its logits."""
    torch.manual_seed(0)
    model = RoleModel(load_causal_lm(base, torch.float32, quantization=about.get("quantization")))
    model.add("policy", method, trainable=True)
    with torch.no_grad(), model.use("policy"):
        for parameter in model.parameters_of("policy").values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        logits = model.logits(model.hidden(IDS, torch.ones_like(IDS)))
    facts = {"base": str(base), "base_fingerprint": fingerprint(base), "recipe": "r"}
    save_adapter(folder / "adapter", adapter_of(method, model.adapter("policy"), "policy"), facts | about)
    registry = Registry(f"sqlite:///{folder}/registry.db", str(folder / "artifacts"), create=True)
    registry.register(
        "a",
        str(folder / "adapter"),
        kind="policy",
        base=facts["base"],
        base_fingerprint=facts["base_fingerprint"],
        lineage={},
        metrics={},
    )
    return logits


def merge(folder: Path, *options: str, ref: str = "a@1") -> str:
    arguments = ["adapters", "merge", ref, str(folder / "merged"), "--registry", f"sqlite:///{folder}/registry.db"]
    result = CliRunner().invoke(app, [*arguments, *options])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_transformers_loads_what_was_merged(tmp_path: Path, tiny_model_dir: Path) -> None:
    logits = registered(tmp_path, tiny_model_dir, Ia3())
    assert f"a@1 -> {tmp_path / 'merged'} (float32; KL " in merge(tmp_path, "--dtype", "float32")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=IDS).logits, logits, atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "merged" / "triptych.json").read_text())["kind"] == "model"
    with pytest.raises(UserError, match="exists already"):
        merge(tmp_path)


def test_a_merged_model_stops_where_answers_ended_in_training(tmp_path: Path, tiny_model_copy: Path) -> None:
    """Its base's tokenizer and configuration stop at another token than a turn ends with."""
    settings = json.loads((tiny_model_copy / "tokenizer_config.json").read_text()) | {"eos_token": "<|endoftext|>"}
    (tiny_model_copy / "tokenizer_config.json").write_text(json.dumps(settings))
    (tiny_model_copy / "generation_config.json").write_text(json.dumps({"eos_token_id": 0}))
    registered(tmp_path, tiny_model_copy, Lora(r=4))
    merge(tmp_path)
    written = json.loads((tmp_path / "merged" / "generation_config.json").read_text())
    assert written == {"eos_token_id": [2, 0]}


def test_what_a_quantized_base_costs_is_measured(tmp_path: Path, tiny_model_dir: Path) -> None:
    registered(tmp_path, tiny_model_dir, Lora(r=4), quantization="int8")
    with pytest.raises(UserError, match=r"differs from the adapter on its int8 base by .*; allowed: up to 1e-09"):
        merge(tmp_path, "--dtype", "float16", "--limit", "1e-9")
    assert not (tmp_path / "merged").exists()
    assert "nats a token" in merge(tmp_path)


def test_what_does_not_merge_is_refused(tmp_path: Path, tiny_model_dir: Path, tiny_model_copy: Path) -> None:
    registered(tmp_path, tiny_model_dir, Houlsby())
    with pytest.raises(UserError, match="houlsby: houlsby does not merge; methods that do: lora, dora"):
        merge(tmp_path)
    model = load_causal_lm(tiny_model_copy, torch.float32)
    torch.nn.init.normal_(model.model.norm.weight)
    model.save_pretrained(tiny_model_copy)
    with pytest.raises(UserError, match=r"is another model than .*, on which the adapter was trained"):
        merge(tmp_path, "--base", str(tiny_model_copy))


def small(folder: Path, base: Path) -> torch.Tensor:
    """A LoRA whose change is 0.2% of the weights, as a trained one's is, on a base in bfloat16."""
    model = load_causal_lm(base, torch.bfloat16)
    model.save_pretrained(base)
    return registered(folder, base, Lora(r=4, alpha=0.15))


def test_a_precision_that_loses_the_change_is_refused_and_never_chosen(tmp_path: Path, tiny_model_copy: Path) -> None:
    logits = small(tmp_path, tiny_model_copy)
    with pytest.raises(UserError, match=r"bfloat16 keeps 0\.\d+ of the adapter's change .*: float16, float32"):
        merge(tmp_path, "--dtype", "bfloat16")
    assert not (tmp_path / "merged").exists()
    assert "(float16; KL " in merge(tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    with torch.no_grad():
        after = (merged(input_ids=IDS).logits - logits).abs().max()
        base = AutoModelForCausalLM.from_pretrained(tiny_model_copy, dtype=torch.float32)
        whole = (base(input_ids=IDS).logits - logits).abs().max()
    assert after < 0.25 * whole, "noise of rounding, and no less of the change"


def test_the_divergence_is_a_gate_of_every_merge(tmp_path: Path, tiny_model_copy: Path) -> None:
    small(tmp_path, tiny_model_copy)
    with pytest.raises(UserError, match=r"merged in float16 it differs from the adapter on its base by .*up to 1e-12"):
        merge(tmp_path, "--limit", "1e-12")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_from_elsewhere_is_merged(tmp_path: Path, tiny_model_dir: Path) -> None:
    """peft's two files and nothing else; the registry knows the base."""
    registered(tmp_path, tiny_model_dir, Lora(r=4, alpha_pattern={"q_proj": 64}))
    (tmp_path / "adapter" / "triptych.json").unlink()
    registry = Registry(f"sqlite:///{tmp_path}/registry.db", str(tmp_path / "artifacts"))
    registry.register(
        "a",
        tmp_path / "adapter",
        kind="policy",
        base=str(tiny_model_dir),
        base_fingerprint=fingerprint(tiny_model_dir),
        lineage={},
        metrics={},
    )
    merge(tmp_path, "--dtype", "float32", ref="a@2")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), tmp_path / "adapter")
    with torch.no_grad():
        found = plain(input_ids=IDS).logits
        torch.testing.assert_close(found, expected(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
