"""`adapters merge`: a version and its base become one model, which plain transformers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
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


def merge(folder: Path, *options: str) -> str:
    arguments = ["adapters", "merge", "a@1", str(folder / "merged"), "--registry", f"sqlite:///{folder}/registry.db"]
    result = CliRunner().invoke(app, [*arguments, *options])
    if isinstance(result.exception, UserError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def test_transformers_loads_what_was_merged(tmp_path: Path, tiny_model_dir: Path) -> None:
    logits = registered(tmp_path, tiny_model_dir, Ia3())
    assert f"a@1 -> {tmp_path / 'merged'}\n" in merge(tmp_path, "--dtype", "float32")
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
        merge(tmp_path, "--limit", "1e-9")
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
