"""What vLLM can serve, what is kept all the same, and what is never kept."""

import json
import os
import re
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from triptych.errors import UserError
from triptych.models.vllm_lora import unserved_module
from triptych.registry import ArtifactError, Registry, compat
from triptych.registry.validation import check_content, check_files
from triptych.serve.capabilities import Capabilities

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
Write = Callable[..., Path]
ABOUT: dict[str, Any] = {"base": "b", "base_fingerprint": "f", "lineage": {}, "metrics": {}}
JUDGE = Capabilities().why_not


def reason(folder: Path, kind: str = "policy", max_rank: int = 64) -> str | None:
    """Why vLLM with LoRA cannot serve the folder; what the version before is told of a policy is the same."""
    check_files(folder)
    facts = check_content(folder, kind)
    found = Capabilities(max_rank).why_not(kind, facts)
    if kind == "policy":
        assert compat.why_not(kind, facts, max_rank) == found
    return found


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": False},
        {"auto_mapping": {"base_model_class": "LlamaForCausalLM", "parent_library": "transformers"}},
        {"rank_pattern": {"v_proj": 2}},
        {"rank_pattern": {"self_attn.q_proj": 4}, "r": 2},
    ],
)
def test_plain_lora_is_servable(tmp_path: Path, config: dict[str, Any], write_lora: Write) -> None:
    assert reason(write_lora(tmp_path / "a", **({"r": 4} | config), tensor_rank=4)) is None


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "peft_type is 'PREFIX_TUNING': vLLM serves LORA only"),
        ({"use_dora": True}, "DoRA"),
        ({"lora_bias": True}, "trains biases"),
        ({"bias": "all"}, "trains biases"),
        ({"init_lora_weights": "pissa"}, "'pissa' changed the base's weights"),
        ({"init_lora_weights": "pissa_niter_16"}, "changed the base's weights"),
        ({"init_lora_weights": "OLoRA"}, "changed the base's weights"),
        ({"init_lora_weights": "corda"}, "changed the base's weights"),
        ({"init_lora_weights": "loftq"}, "changed the base's weights"),
        ({"modules_to_save": ["embed_tokens", "score"]}, "modules_to_save: embed_tokens"),
        ({"trainable_token_indices": [3]}, "single tokens"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"layer_replication": [[0, 2]]}, "replicates layers"),
        ({"use_bdlora": {"x": 1}}, "block-diagonal"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"rank_pattern": {"v_proj": 65}}, "rank is 65, and 64 is the largest allowed"),
    ],
)
def test_what_vllm_cannot_serve_says_why(
    tmp_path: Path, registry: Registry, config: dict[str, Any], why: str, write_lora: Write
) -> None:
    folder = write_lora(tmp_path / "a", **config)
    found = reason(folder)
    assert found is not None
    assert why in found

    with pytest.raises(UserError, match="cannot be served"):
        registry.register("reviews", folder, kind="policy", for_serving=JUDGE, **ABOUT)
    assert registry.adapters() == []
    assert not list((tmp_path / "runs/artifacts/reviews").iterdir())
    kept = registry.register("reviews", folder, kind="policy", **ABOUT)
    assert Capabilities().why_not(kept.kind, registry.facts(kept.ref)) == kept.recorded_why_not == found


def test_a_head_beside_a_policy_is_not_served(tmp_path: Path, write_reward: Write) -> None:
    folder = write_reward(tmp_path / "a")
    (folder / "triptych.json").unlink()
    assert "scalar head" in str(reason(folder, "policy"))


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_is_no_adapter_is_kept_and_not_served(tmp_path: Path, registry: Registry, kind: str) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    if kind == "model":
        with pytest.raises(ArtifactError, match=r"model.safetensors is missing"):
            registry.register("other", folder, kind=kind, **ABOUT)
        save_file({"w": torch.ones(2)}, folder / "model.safetensors")
    version = registry.register("other", folder, kind=kind, **ABOUT)
    assert (version.kind, registry.facts("other").config) == (kind, None)
    assert JUDGE(kind, registry.facts("other")) is not None
    assert version.recorded_why_not is not None


def test_the_largest_rank_is_configured(tmp_path: Path, write_lora: Write) -> None:
    folder = write_lora(tmp_path / "a", r=8)
    assert reason(folder, max_rank=8) is None
    assert "rank is 8" in str(reason(folder, max_rank=7))


def test_a_score_head_of_peft_is_servable_and_other_tensors_are_not(tmp_path: Path, write_lora: Write) -> None:
    score = {"base_model.model.score.weight": torch.ones(1, 8)}
    assert reason(write_lora(tmp_path / "a", tensors=score, modules_to_save=["score"])) is None
    stray = {f"{MODULE}.lora_magnitude_vector": torch.ones(8)}
    assert "no place for its tensor" in str(reason(write_lora(tmp_path / "b", tensors=stray)))


def test_a_reward_model_is_kept_and_not_served(tmp_path: Path, registry: Registry, write_reward: Write) -> None:
    folder = write_reward(tmp_path / "a")
    version = registry.register("reward", folder, kind="reward_model", **ABOUT)
    assert "scalar head" in str(version.recorded_why_not)
    assert "scalar head" in str(reason(folder, "reward_model"))
    with pytest.raises(UserError, match="cannot be served: it has a scalar head"):
        registry.register("reward", folder, kind="reward_model", for_serving=JUDGE, **ABOUT)


def _write_classifier(folder: Path, write_lora: Write, labels: object, **head: torch.Tensor) -> Path:
    write_lora(folder)
    save_file(head, folder / "head.safetensors")
    (folder / "triptych.json").write_text(json.dumps({"kind": "classifier", "labels": labels}))
    return folder


def test_a_classifier_is_kept_and_not_served(tmp_path: Path, registry: Registry, write_lora: Write) -> None:
    folder = _write_classifier(tmp_path / "a", write_lora, ["bad", "good"], weight=torch.randn(2, 8))
    version = registry.register("stars", folder, kind="classifier", **ABOUT)
    assert version.recorded_why_not == "it is a classifier: the endpoint generates text, it names no classes"
    with pytest.raises(UserError, match="cannot be served: it is a classifier"):
        registry.register("stars", folder, kind="classifier", for_serving=JUDGE, **ABOUT)


@pytest.mark.parametrize(
    ("labels", "head", "message"),
    [
        (["bad", "good"], {"weight": torch.randn(3, 8)}, r"holds weight \[2, d\]"),
        (["bad", "good"], {"weight": torch.randn(2, 8), "bias": torch.zeros(2)}, "one row for each class"),
        (["bad", "bad"], {"weight": torch.randn(2, 8)}, "each once"),
        (None, {"weight": torch.randn(2, 8)}, "labels holds the names"),
    ],
)
def test_half_a_classifier_is_refused(
    tmp_path: Path, write_lora: Write, labels: object, head: dict[str, torch.Tensor], message: str
) -> None:
    folder = _write_classifier(tmp_path / "a", write_lora, labels, **head)
    with pytest.raises(ArtifactError, match=message):
        check_content(folder, "classifier")
    (folder / "head.safetensors").unlink()
    with pytest.raises(ArtifactError, match="classifier without its head"):
        check_content(folder, "classifier")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "head.safetensors").unlink(), "reward model without its head"),
        (lambda folder: _save(folder / "head.safetensors", weight=torch.ones(2, 8), bias=torch.ones(1)), "weight"),
        (lambda folder: _save(folder / "head.safetensors", weight=torch.ones(1, 8)), "bias"),
        (lambda folder: (folder / "triptych.json").write_text("{}"), "normalization"),
        (
            lambda folder: (folder / "triptych.json").write_text('{"normalization": {"mean": 0, "std": 0}}'),
            "a std above 0",
        ),
    ],
)
def test_half_a_reward_model_is_refused(
    tmp_path: Path, damage: Callable[[Path], Any], message: str, write_reward: Write
) -> None:
    folder = write_reward(tmp_path / "a")
    damage(folder)
    with pytest.raises(ArtifactError, match=message):
        reason(folder, "reward_model")


def _save(path: Path, **tensors: torch.Tensor) -> None:
    from safetensors.torch import save_file

    save_file(tensors, path)


def _weights(folder: Path, **tensors: torch.Tensor) -> None:
    a, b = torch.ones(4, 8), torch.ones(8, 4)
    pair = {f"{MODULE}.lora_A.weight": tensors.pop("a", a), f"{MODULE}.lora_B.weight": tensors.pop("b", b)}
    _save(folder / "adapter_model.safetensors", **pair, **tensors)


def _header(folder: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)


def _link(folder: Path, name: str, target: str) -> None:
    (folder / name).symlink_to(target)


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (lambda f: (f / "adapter_model.bin").write_bytes(b""), "adapter_model.bin may hold code"),
    "torch": (lambda f: (f / "optimizer.pt").write_bytes(b""), "optimizer.pt may hold code"),
    "python": (lambda f: (f / "modeling.py").write_text(""), "modeling.py: an artifact holds .* files only"),
    "hidden": (lambda f: (f / ".env").write_text(""), r"\.env: an artifact holds"),
    "link": (lambda f: _link(f, "notes.txt", "/etc/passwd"), "notes.txt is a link"),
    "linked folder": (lambda f: _link(f, "etc", "/etc"), "etc is a link"),
    "pipe": (lambda f: os.mkfifo(f / "pipe.json"), "pipe.json is a link or a device"),
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "adapter_config.json is missing"),
    "no weights": (lambda f: (f / "adapter_model.safetensors").unlink(), "adapter_model.safetensors is missing"),
    "bad config": (lambda f: (f / "adapter_config.json").write_text("{"), "adapter_config.json is not valid JSON"),
    "list config": (lambda f: (f / "adapter_config.json").write_text("[]"), "holds no JSON object"),
    "deep config": (lambda f: (f / "config.json").write_text("[" * 100_000), "not valid JSON"),
    "code": (lambda f: (f / "config.json").write_text('{"auto_map": {"AutoModel": "m.M"}}'), "config.json: auto_map"),
    "code of peft": (lambda f: _config(f, auto_map={}), "adapter_config.json: auto_map"),
    "nan": (lambda f: _weights(f, a=torch.full((4, 8), float("nan"))), "lora_A.weight has values that are not finite"),
    "inf": (lambda f: _weights(f, b=torch.full((8, 4), float("inf")).bfloat16()), "lora_B.weight has values"),
    "integers": (lambda f: _weights(f, a=torch.ones(4, 8, dtype=torch.int32)), "has type torch.int32"),
    "rank": (lambda f: _weights(f, a=torch.ones(2, 8), b=torch.ones(8, 2)), "rank 2 in lora_A .* says 4"),
    "odd pair": (lambda f: _weights(f, b=torch.ones(8, 3)), "rank 4 in lora_A and 3 in lora_B"),
    "vector": (lambda f: _weights(f, b=torch.ones(8)), r"has shape \[8\]"),
    "half": (
        lambda f: _save(f / "adapter_model.safetensors", **{f"{MODULE}.lora_A.weight": torch.ones(4, 8)}),
        "only one of lora_A and lora_B",
    ),
    "none": (lambda f: _save(f / "adapter_model.safetensors", x=torch.ones(1)), "holds no LoRA tensors"),
    "no rank": (lambda f: _config(f, r=0), "r and rank_pattern hold ranks"),
    "text rank": (lambda f: _config(f, r="4"), "r and rank_pattern hold ranks"),
    "pattern": (lambda f: _config(f, rank_pattern={"(": 4}), "not a regular expression"),
    "empty file": (lambda f: (f / "adapter_model.safetensors").write_bytes(b""), "not a sound safetensors file"),
    "huge header": (
        lambda f: (f / "adapter_model.safetensors").write_bytes(struct.pack("<Q", 2**60)),
        "not a sound safetensors file",
    ),
    "short data": (
        lambda f: _header(f, {"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"\0" * 8),
        "not a sound safetensors file",
    ),
    "wrong size": (
        lambda f: _header(f, {"x": {"dtype": "F32", "shape": [400], "data_offsets": [0, 16]}}, b"\0" * 16),
        "not a sound safetensors file",
    ),
    "other head": (
        lambda f: (f / "head.safetensors").write_bytes(b"\x80\x04"),
        "head.safetensors is not a sound safetensors file",
    ),
    "note": (lambda f: (f / "triptych.json").write_text('{"kind": "reward"}'), "kind is 'reward_model', .*'policy'"),
    "base": (lambda f: (f / "triptych.json").write_text('{"base_fingerprint": "g"}'), "base_fingerprint is 'g'"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_or_unsafe_artifact_is_never_kept(lora: Path, registry: Registry, tmp_path: Path, case: str) -> None:
    damage, message = BROKEN[case]
    damage(lora)
    with pytest.raises(ArtifactError, match=f"^{lora}: .*{message}"):
        registry.register("reviews", lora, kind="policy", **ABOUT)
    assert registry.adapters() == []
    assert not list((tmp_path / "runs/artifacts/reviews").iterdir())


def test_too_many_bytes_are_refused(lora: Path) -> None:
    with pytest.raises(ArtifactError, match=r"bytes are more than an artifact may have \(100\)"):
        check_files(lora, max_bytes=100)


def test_no_folder(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        registry.register("reviews", tmp_path / "nowhere", kind="policy", **ABOUT)


@pytest.mark.slow
def test_what_peft_writes_is_servable_and_loads_again(tiny_model_dir: Path, registry: Registry, tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules="all-linear", rank_pattern={"layers.1.self_attn.q_proj": 2})
    trained = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model_dir), config)
    for name, parameter in trained.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    trained.save_pretrained(str(tmp_path / "peft"))

    version = registry.register("reviews", tmp_path / "peft", kind="policy", for_serving=JUDGE, **ABOUT)
    folder = registry.fetch(version.ref)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), str(folder))
    ids = torch.tensor([[5, 6, 7]])
    torch.testing.assert_close(loaded(ids).logits, trained(ids).logits, rtol=0, atol=0)


def test_vllm_agrees(tmp_path: Path, write_lora: Write) -> None:
    """The features that we refuse are those that vLLM refuses, and only those."""
    helper = pytest.importorskip("vllm.lora.peft_helper").PEFTHelper
    features: dict[str, list[Any]] = {
        "use_dora": [True, False],
        "lora_bias": [True, False],
        "init_lora_weights": [True, False, "gaussian", "eva", "orthogonal", "pissa", "pissa_niter_4", "olora", "corda"],
        "modules_to_save": [None, ["score"], ["lm_head"]],
        "layer_replication": [None, [[0, 1]]],
        "alora_invocation_tokens": [None, [1]],
        "use_qalora": [True, False],
        "use_bdlora": [None, {"x": 1}],
    }
    for feature, values in features.items():
        for value in values:
            folder = write_lora(tmp_path / f"{feature}-{value}", **{feature: value})
            refused = helper.from_dict(json.loads((folder / "adapter_config.json").read_text()))._validate_features()
            assert bool(refused) == (reason(folder) is not None), (feature, value)


@pytest.mark.parametrize(
    ("method", "files", "why"),
    [
        ({"name": "houlsby"}, ["adapter_model.safetensors"], "its method is houlsby: vLLM serves LoRA only"),
        (
            [{"name": "lora"}, {"name": "bitfit"}],
            ["lora/adapter_model.safetensors", "bitfit/adapter_model.safetensors"],
            r"its method is lora \+ bitfit: vLLM serves LoRA only; merge it into the base \(`adapters merge`\)",
        ),
    ],
)
def test_methods_that_only_triptych_knows_are_kept(tmp_path: Path, method: Any, files: list[str], why: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file({"down": torch.ones(2, 2)}, tmp_path / name)
    (tmp_path / "triptych.json").write_text(json.dumps({"kind": "lora", "method": method}))
    assert re.fullmatch(why, str(reason(tmp_path)))
    (tmp_path / files[-1]).unlink()
    with pytest.raises(ArtifactError, match=f"{files[-1]} is missing"):
        reason(tmp_path)


def test_a_method_is_no_path(tmp_path: Path) -> None:
    (tmp_path / "triptych.json").write_text(json.dumps({"method": [{"name": "lora"}, {"name": "../../secret"}]}))
    with pytest.raises(ArtifactError, match=r"'\.\./\.\./secret' is the name of no method"):
        reason(tmp_path)


def test_merging_is_what_else_can_be_done(tmp_path: Path, write_lora: Write) -> None:
    folder = write_lora(tmp_path / "a", peft_type="IA3")
    (folder / "triptych.json").write_text(json.dumps({"kind": "lora", "method": {"name": "ia3"}}))
    assert str(reason(folder)).endswith("vLLM serves LORA only; merge it into the base (`adapters merge`)")


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            "While loading /a/b, expected target modules in {'q_proj'} but received ['lm_head', 'lm_head']. Please",
            "vLLM has no LoRA for lm_head in this base; merge it into the base (`adapters merge`)",
        ),
        ("Call to add_lora method failed: no such file", None),
    ],
)
def test_what_vllm_refuses_as_it_loads_is_said_to_the_client(message: str, said: str | None) -> None:
    assert unserved_module(message) == said
