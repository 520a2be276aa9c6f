"""Merging an adapter into the base checkpoint, without an engine."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from transformers import LlamaForCausalLM

from triptych.engines.base import Digested, adapter_digest, resolve_mode
from triptych.engines.merging import merged_weights, replaced_weights
from triptych.errors import RunError
from triptych.forward.export import adapter_of
from triptych.forward.roles import RoleModel
from triptych.methods.merged import WeightChanges, changed_weights
from triptych.models.base import load_causal_lm
from triptych.models.full import BUCKET, in_buckets
from triptych.models.weights import read_weights, weight_files
from triptych.recipe import Rollout
from triptych.recipe.matrix import Dora, Ia3

MakeAdapter = Callable[..., Any]
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.*down_proj": 3}}]
)
def test_merged_weights_are_those_of_peft(model_dir: Path, make_adapter: MakeAdapter, settings: dict[str, Any]) -> None:
    adapter = make_adapter(3, target_modules=["q_proj", "down_proj"], **settings)
    merged = dict(merged_weights(model_dir, adapter.content, adapter.config, torch.float32, CPU))
    model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model_dir), adapter.folder).merge_and_unload()
    expected = {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"}
    assert merged.keys() == expected.keys()
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name], weight, atol=1e-6, rtol=1e-5)


def test_the_sum_is_rounded_once(model_dir: Path, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(4)
    low = dict(merged_weights(model_dir, adapter.content, adapter.config, torch.bfloat16, CPU))
    full = dict(merged_weights(model_dir, adapter.content, adapter.config, torch.float32, CPU))
    assert all(torch.equal(low[name], weight.bfloat16()) for name, weight in full.items())


def test_sharded_checkpoints_are_read_whole(model_dir: Path, make_adapter: MakeAdapter, tmp_path: Path) -> None:
    LlamaForCausalLM.from_pretrained(model_dir).save_pretrained(tmp_path, max_shard_size="200KB")
    assert len(weight_files(tmp_path)) > 1
    adapter = make_adapter(5)
    arguments = (adapter.content, adapter.config, torch.float32, CPU)
    one, many = dict(merged_weights(model_dir, *arguments)), dict(merged_weights(tmp_path, *arguments))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


def test_no_part_of_an_adapter_is_lost_silently(model_dir: Path, make_adapter: MakeAdapter) -> None:
    adapter = make_adapter(6)
    tensors = load_safetensors(adapter.content)
    renamed = {name.replace("layers.1.", "layers.9."): tensor for name, tensor in tensors.items()}
    with pytest.raises(RunError, match=r"has no model\.layers\.9\."):
        dict(merged_weights(model_dir, save_safetensors(renamed), adapter.config, torch.float32, CPU))
    extra = tensors | {"base_model.model.lm_head.weight": torch.zeros(2, 2)}
    with pytest.raises(RunError, match="no part of a LoRA"):
        dict(merged_weights(model_dir, save_safetensors(extra), adapter.config, torch.float32, CPU))
    half = {name: tensor for name, tensor in tensors.items() if "q_proj.lora_A" not in name}
    with pytest.raises(RunError, match=r"q_proj\.weight without lora_A"):
        dict(merged_weights(model_dir, save_safetensors(half), adapter.config, torch.float32, CPU))
    for key, value in (("use_dora", True), ("bias", "all"), ("modules_to_save", ["lm_head"])):
        with pytest.raises(RunError, match=key):
            dict(merged_weights(model_dir, adapter.content, adapter.config | {key: value}, torch.float32, CPU))


def test_digest_covers_bytes_and_config() -> None:
    config = {"r": 4, "lora_alpha": 8}
    digest = adapter_digest(b"weights", config)
    assert digest == adapter_digest(b"weights", json.loads('{"lora_alpha": 8, "r": 4}'))
    assert digest not in (adapter_digest(b"weight", config), adapter_digest(b"weights", config | {"r": 5}))


@pytest.mark.parametrize(
    ("settings", "dtype", "family", "mode"),
    [
        ({}, "float32", "llama", "merged"),
        ({}, "float16", "llama", "merged"),
        ({}, "bfloat16", "llama", "adapter"),
        ({}, "bfloat16", "falcon", "merged"),
        ({}, "bfloat16", "of tomorrow", "merged"),
        ({"gpus": 1}, "float32", "llama", "adapter"),
        ({"sync": "adapter"}, "float32", "llama", "adapter"),
        ({"sync": "merged"}, "bfloat16", "llama", "merged"),
    ],
)
def test_auto_mode_loses_no_small_change(
    settings: dict[str, Any], dtype: str, family: str, mode: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    assert resolve_mode(Rollout.model_validate(settings), dtype, str(tmp_path)) == mode


@pytest.mark.parametrize("method", [Dora(r=4), Ia3()], ids=lambda method: method.name)
def test_other_methods_than_lora_replace_weights(model_dir: Path, method: Dora | Ia3) -> None:
    """What the engine's model becomes answers as the policy does."""
    torch.manual_seed(0)
    policy = RoleModel(load_causal_lm(model_dir, torch.float32))
    policy.add("policy", method, trainable=True)
    with torch.no_grad():
        for parameter in policy.parameters_of("policy").values():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    adapter = adapter_of(method, policy.adapter("policy"), "policy")
    changed = changed_weights(model_dir, adapter.method, adapter.weights)
    engine = LlamaForCausalLM.from_pretrained(model_dir)
    before = engine.model.layers[0].mlp.down_proj.weight.clone()
    engine.load_state_dict(
        dict(replaced_weights(model_dir, [save_safetensors(changed)], torch.float32, CPU)), strict=False
    )
    assert not torch.equal(engine.model.layers[0].mlp.down_proj.weight, before)
    ids = torch.randint(5, 200, (1, 9), generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), policy.use("policy"):
        expected = policy.logits(policy.hidden(ids, torch.ones_like(ids)))
        torch.testing.assert_close(engine(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    changes = WeightChanges(model_dir, adapter.method)
    changes.of({name: torch.randn_like(tensor) for name, tensor in adapter.weights.items()})
    again = changes.of(adapter.weights)
    assert all(torch.equal(again[name], value) for name, value in changed.items())
    odd = save_safetensors({"model.layers.9.mlp.down_proj.weight": torch.zeros(2, 2)})
    with pytest.raises(RunError, match=r"has no model\.layers\.9\."):
        dict(replaced_weights(model_dir, [odd], torch.float32, CPU))


def test_weights_in_buckets_arrive_bit_for_bit_whatever_their_size(model_dir: Path) -> None:
    """Each tensor once: the last bucket acknowledges all of them, by a digest over all."""
    weights = {name: torch.randn_like(value) for name, value in read_weights(model_dir).items()}
    stay = min(weights)
    sent = {name: value for name, value in weights.items() if name != stay}
    largest = max(value.nbytes for value in sent.values())
    for limit in (1, largest, 2 * largest, BUCKET):
        buckets = list(in_buckets(sent.items(), torch.float32, limit))
        sizes = [sum(value.nbytes for value in load_safetensors(bucket).values()) for bucket in buckets]
        assert max(sizes) <= max(limit, largest)
        assert len(buckets) == (len(sent) if limit == 1 else len(buckets))
        passing = Digested(iter(buckets))
        loaded = dict(replaced_weights(model_dir, passing, torch.float32, CPU))
        assert loaded.keys() == weights.keys()
        assert all(torch.equal(loaded[name], value) for name, value in sent.items())
        assert torch.equal(loaded[stay], read_weights(model_dir)[stay])
        assert passing.digest == hashlib.sha256(b'{"weights":"replaced"}' + b"".join(buckets)).hexdigest()
    one = save_safetensors({stay: weights[stay]})
    with pytest.raises(RunError, match=stay):
        dict(replaced_weights(model_dir, [one, one], torch.float32, CPU))


def test_a_sync_without_changes_is_the_checkpoint(model_dir: Path) -> None:
    (bucket,) = in_buckets((), torch.float32)
    loaded = dict(replaced_weights(model_dir, [bucket], torch.float32, CPU))
    assert all(torch.equal(loaded[name], value) for name, value in read_weights(model_dir).items())
